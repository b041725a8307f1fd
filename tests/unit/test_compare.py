"""Comparisons: what was planted is found, with the right sign and an interval that holds it; what was not, is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import streams

from bpfpath_nb import Recording, compare, sample, schema
from bpfpath_nb.analysis.compare import Tables
from bpfpath_nb.analysis.sides import Selection
from bpfpath_nb.errors import NamespaceError, OptionError

TABLES = ("verdicts", "drops", "paths", "functions", "transitions", "places")
CLAIMS = ["added", "gone", "shifted", "slower", "faster"]
USUAL = ("answered", "closed", "left")


def claims(tables) -> list[str]:
    """Everything that is claimed, as text."""
    found = []
    for name in TABLES:
        table = getattr(tables, name)
        found += [f"{name} {key} {change}" for key, change in table["change"].items() if change in CLAIMS]
        # A p under the level is a claim, whatever `change` makes of it.
        small = table.filter(regex="_p$").lt(0.05).any(axis=1)
        assert set(table.index[table["change"].isin(CLAIMS)]) == set(table.index[small])
    return found


def part(recording, packets) -> Selection:
    return Selection(recording.events, packets)


def rec(packets, seed, **options) -> Recording:
    return streams.capture(packets, seed=seed, **options).recording()


# What is not there


def test_what_does_not_differ_is_not_claimed_to() -> None:
    """Parts of one capture, and parts of two that were made alike."""
    random = np.random.default_rng(7)
    alike = {"kinds": (*USUAL, "filtered", "tapped"), "weights": (0.5, 0.2, 0.2, 0.07, 0.03)}
    captures = [
        [rec(2000, 10 * at + seed, spread=spread, **alike) for seed in (1, 2)]
        for at, spread in enumerate(streams.SPREADS)
    ]
    alarms = []
    for at in range(200):
        first, second = captures[at % len(captures)]
        size = (30, 100, 250, 600)[at // 4 % 4]
        order = random.permutation(2000)
        sides = []
        # Every third pair is of sizes that differ by far.
        for begin, end in ((0, size), (size, 2 * size if at % 3 else 3 * size)):
            chosen = np.zeros(2000, bool)
            chosen[order[begin:end]] = True
            sides.append(part(second if sides and at // 16 % 2 else first, chosen))
        found = claims(Tables(*sides))
        alarms += [(at, found)] if found else []

    assert len(alarms) < 10, alarms


def test_packets_that_come_in_runs_are_not_taken_for_a_difference() -> None:
    """Before and after, as they are captured: full queues drop in bursts, and transfers send many packets alike."""
    alike = {"kinds": (*USUAL, "filtered", "tapped"), "weights": (0.5, 0.2, 0.2, 0.07, 0.03)}
    captures = [[rec(12_000, 10 * at + seed, run=run, **alike) for seed in (1, 2)] for at, run in enumerate((2, 5, 10))]
    alarms = []
    for at in range(60):
        sides, size = [], (200, 400)[at // 3 % 2]
        for recording in captures[at % 3]:
            chosen = np.zeros(12_000, bool)
            chosen[at // 6 * 400 :][:size] = True
            sides.append(part(recording, chosen))
        found = claims(Tables(*sides))
        alarms += [(at, found)] if found else []

    assert len(alarms) <= 3, alarms


# What is there


@pytest.mark.parametrize(
    ("packets", "delay", "spread"),
    [(30, 20_000, "even"), (300, 2000, "heavy"), (5000, 300, "even"), (1000, 3000, "correlated")],
)
def test_a_delay_in_one_function_is_found(packets: int, delay: int, spread: str) -> None:
    before = rec(packets, 1, kinds=USUAL, spread=spread)
    after = rec(packets, 2, kinds=USUAL, spread=spread, delay={"tc_ingress": delay})

    found = compare(before, after)

    functions = found.functions
    assert functions["change"].isin(CLAIMS).sum() == 1
    assert functions["change"]["tc_ingress"] == "slower"
    # Every packet passes it twice.
    assert functions["shift_low"]["tc_ingress"].value <= 2 * delay <= functions["shift_high"]["tc_ingress"].value
    assert functions["longer"]["tc_ingress"] > 0.5
    steps = found.transitions.query("change == 'slower'")
    assert list(steps.index) == [("tc_ingress", "ip_rcv")]
    places = found.places.query("change == 'slower'")
    assert set(places.index) == {("router", "left", "tc_ingress"), ("server", "eth0", "tc_ingress")}
    assert (places["shift_low"] <= pd.Timedelta(delay)).all()
    assert (places["shift_high"] >= pd.Timedelta(delay)).all()
    assert "Slower at the median in after: after tc_ingress in netns" in found.summary
    back = compare(after, before)
    assert back.functions["change"]["tc_ingress"] == "faster"
    assert abs(back.functions["shift"]["tc_ingress"].value + functions["shift"]["tc_ingress"].value) <= 1


def test_a_slower_way_to_the_socket_is_told() -> None:
    found = compare(rec(500, 1, kinds=USUAL), rec(500, 2, kinds=USUAL, delay={"netif_rx": 10_000_000}))

    delivered = found.verdicts.loc["delivered"]
    assert delivered["change"] == "slower"
    assert delivered["shift_low"].value <= 20_000_000 <= delivered["shift_high"].value
    assert "Median time to the socket rose from" in found.summary
    assert "+20.0 ms, 95 % CI +20.0 ms to +20.0 ms" in found.summary


def test_a_new_drop_is_found() -> None:
    before = rec(500, 1, kinds=USUAL)
    after = rec(480, 2, kinds=(*USUAL, "filtered"), weights=(0.31, 0.31, 0.31, 0.07))

    found = compare(before, after)

    drop = found.drops.loc[("NETFILTER_DROP", "nf_hook_slow", "router")]
    count = int((after.packets["reason"] == "NETFILTER_DROP").sum())
    assert (drop["packets_a"], drop["packets_b"], drop["change"]) == (0, count, "added")
    assert drop["difference_low"] < 0.07 < drop["difference_high"]
    assert list(found.drops["change"]) == ["added", "same"]
    assert f"of the packets of after ({count} of 480) end in NETFILTER_DROP in netns router; none of before" in (
        found.summary
    )
    gone = compare(after, before)
    assert gone.drops["change"].iloc[0] == "gone"
    assert "none of after does" in gone.summary


def test_a_path_that_vanished_and_a_share_that_moved_are_found() -> None:
    before = rec(400, 1, kinds=(*USUAL, "tapped"), weights=(0.4, 0.2, 0.2, 0.2))
    after = rec(400, 2, kinds=USUAL, weights=(0.75, 0.05, 0.2))

    found = compare(before, after)

    changes = found.paths.groupby("verdict", observed=True)["change"].agg(list)
    assert changes["delivered"] == ["shifted", "gone"]
    assert changes["sent"] == ["same"]
    answered = found.paths[found.paths["change"] == "shifted"]
    answered = answered[answered["difference"] > 0].iloc[0]
    assert answered["difference_low"] < 0.35 < answered["difference_high"]
    assert set(before.paths.index) == set(found.paths.index)
    assert found.align().path_b == answered.name


def test_a_change_of_mix_is_no_change_of_speed() -> None:
    """Sent packets pass a function once and delivered ones twice; more of one kind makes nothing slower."""
    before = rec(1000, 1, kinds=("answered", "left"), weights=(0.8, 0.2))
    after = rec(1000, 2, kinds=("answered", "left"), weights=(0.2, 0.8))

    found = compare(before, after)

    assert not found.functions["change"].isin(["slower", "faster"]).any()
    assert not found.transitions["change"].isin(["slower", "faster"]).any()
    assert (found.paths["change"] == "shifted").all()


def test_a_machine_that_became_slower_everywhere_is_told_from_a_place() -> None:
    everywhere = dict.fromkeys(streams.INDEX, 8000)

    found = compare(rec(300, 1, kinds=USUAL), rec(300, 2, kinds=USUAL, delay=everywhere))

    assert "9 of 9 functions became slower: that is how a change of the machine as a whole looks" in found.summary
    assert "as a whole" not in compare(rec(300, 1), rec(300, 2, delay={"tc_egress": 8000})).summary


def test_the_time_in_a_new_place_is_told() -> None:
    found = compare(
        rec(300, 1, kinds=("closed",)), rec(300, 2, kinds=("closed", "used"), delay={"skb_copy_datagram_iovec": 1})
    )
    back = compare(rec(300, 1, kinds=("answered", "left")), rec(300, 2, kinds=("left",)))

    assert "Only in after" not in found.summary  # what ends there has spent no time there
    assert "Not in after, but in before: median time after" in back.summary
    gone = back.places[back.places["change"].eq("gone") & back.places["median_a"].notna()]
    longest = gone["median_a"].idxmax()
    assert f"after {longest[2]} in netns {longest[0]} on {longest[1]}" in back.summary


# Sides


def test_two_namespaces_of_one_recording() -> None:
    recording = rec(300, 1, kinds=("answered", "filtered"))

    found = compare(recording, netns=("client", "router"))

    assert found.names == ("client", "router")
    client = recording.df[recording.df["netns"].eq("client")]
    assert found.functions["packets_a"]["net_dev_xmit"] == len(client.query("func == 'net_dev_xmit'"))
    assert set(found.functions.index) == set(recording.df[recording.df["netns"] != "server"]["func"])
    spent = client.groupby("packet")["gap"].sum()
    delivered = recording.packets.index[recording.packets["verdict"] == "delivered"]
    assert abs(found.verdicts["median_a"]["delivered"] - spent[delivered].median()).value <= 1
    assert found.drops["packets_b"].sum() == (recording.packets["verdict"] == "dropped").sum()
    assert found.drops["packets_a"].sum() == 0
    assert "in netns client and router" in found.summary


def test_two_packets() -> None:
    recording = rec(10, 1, kinds=("answered", "filtered"))

    found = compare(recording, packets=(1, 2))

    assert found.names == ("packet 1", "packet 2")
    assert not claims(found.tables)
    assert "Packet 2 was dropped (NETFILTER_DROP) by nf_hook_slow in netns router" in found.summary
    assert (
        "The ways part after ip_rcv in netns router on left: packet 1 goes on to __dev_queue_xmit in netns router on "
        "right, packet 2 goes on to kfree_skb in netns router on left." in found.summary
    )
    same = compare(recording, recording, packets=(1, int(recording.packets.query("verdict == 'delivered'").index[1])))
    assert "Both passed the same functions in the same places." in same.summary
    assert same.align().divergence is None


def test_groups_of_packets() -> None:
    recording = rec(200, 1)
    dropped = recording.packets.query("verdict == 'dropped'")

    found = compare(
        recording, packets=(dropped, set(recording.packets.index) - set(dropped.index)), names=("bad", "ok")
    )

    assert found.verdicts["share_a"]["dropped"] == 1
    assert found.verdicts["packets_b"].sum() == len(recording.packets) - len(dropped)
    assert found.summary.startswith(f"Compared {len(dropped)} packets of bad with {200 - len(dropped)} of ok")


def test_drops_that_only_differ_together_are_claimed_together():
    of_dns = sample("dns")
    found = compare(of_dns.query("verdict == 'delivered'"), of_dns.query("verdict == 'dropped'"))
    assert not found.drops["change"].isin(["added", "gone", "shifted"]).any()
    assert "none alone differs beyond chance; together they do:" in found.summary
    assert "Dropped: 0 % of before, 100 % of after" in found.summary


def test_too_few_packets_are_said_to_be_too_few() -> None:
    found = compare(rec(3, 1, kinds=("answered",)), rec(2, 2, kinds=("filtered",)))

    assert not claims(found.tables)
    assert "too thin to say anything: with 3 and 2 packets" in found.summary
    assert list(found.drops["change"]) == ["unclear"]


def test_too_few_packets_for_functions_may_be_enough_for_the_whole_way() -> None:
    slow = rec(6, 2, kinds=("answered",), delay={"netif_rx": 10_000_000})

    found = compare(rec(6, 1, kinds=("answered",)), slow)

    assert found.functions["shift_p"].isna().all()
    assert found.verdicts["change"]["delivered"] == "slower"
    assert "too few like packets on both sides to compare the latencies of single functions" in found.summary
    assert "Median time to the socket rose" in found.summary


def test_functions_that_one_side_could_not_trace_are_no_difference() -> None:
    before = rec(200, 1, kinds=USUAL)
    functions = [dict(entry) for entry in streams.FUNCTIONS]
    functions[streams.INDEX["ip_rcv.isra.0"]]["name"] = "ip_rcv_core"
    after = streams.capture(200, seed=2, kinds=USUAL).recording(functions=functions)

    found = compare(before, after)

    assert not claims(found.tables)
    assert not {"ip_rcv", "ip_rcv_core"} & set(found.functions.index)
    assert "Left out: 1 function that only before traced (ip_rcv)." in found.summary


def test_packets_that_may_lack_hops_make_no_new_paths() -> None:
    found = compare(rec(1000, 1, kinds=USUAL), rec(1000, 2, kinds=USUAL, lost=0.002))

    assert set(found.paths["change"]) == {"same"}
    assert not found.functions["change"].isin(CLAIMS).any()
    assert "of the 1000 packets of after may lack hops and are left out of paths and latencies" in found.summary
    nothing_left = compare(rec(30, 1, kinds=USUAL), rec(30, 2, kinds=USUAL, lost=0.3))
    assert not nothing_left.functions["change"].isin(CLAIMS).any()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"a": "x.parquet"}, OptionError, "takes recordings or captures, not str"),
        ({}, OptionError, "needs two sides"),
        ({"netns": ("client", "sever")}, NamespaceError, "'sever'. Near to that: server"),
        ({"packets": (1, 77)}, OptionError, "no packet 77"),
        ({"packets": (1, [])}, OptionError, "no packet was chosen for 'after'"),
        ({"packets": (1, ["a"])}, OptionError, "by their numbers"),
        ({"packets": (1.5, 2)}, OptionError, "by their numbers"),
        ({"packets": 1}, OptionError, "packets= takes two values"),
        ({"packets": (1, 2), "names": ("x", "x")}, OptionError, "called 'x'"),
        ({"b": streams.capture(0).recording()}, OptionError, "'after' has no packets"),
    ],
)
def test_what_cannot_be_compared_is_said(arguments: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        compare(**{"a": rec(10, 1)} | arguments)


def test_a_path_that_nobody_took_is_said() -> None:
    found = compare(rec(20, 1), rec(20, 2))
    with pytest.raises(OptionError, match="took the path 'abc'"):
        found.align("abc")


# Columns and outputs


@pytest.mark.parametrize("packets", [1, 60])
def test_the_tables_are_as_the_schema_has_them(packets: int) -> None:
    kinds = ("left",) if packets == 1 else tuple(streams.KINDS)
    found = compare(rec(packets, 1, kinds=kinds), rec(packets, 2, kinds=kinds))
    for name in TABLES:
        table = getattr(found, name)
        columns = getattr(schema, f"COMPARED_{name.upper()}")
        assert list(table.columns) == [column.name for column in columns]
        assert [str(dtype) for dtype in table.dtypes] == [column.dtype for column in columns]
        index = getattr(schema, f"COMPARED_{name.upper()}_INDEX")
        assert list(table.index.names) == [column.name for column in index]
        assert list(table["change"].cat.categories) == list(schema.CHANGES)
    aligned = found.align().frame
    assert [(name, str(dtype)) for name, dtype in aligned.dtypes.items()] == [
        (c.name, c.dtype) for c in schema.ALIGNMENT
    ]


def test_names_of_others_are_escaped(monkeypatch) -> None:
    bad = "<script>alert(1)</script>"
    monkeypatch.setattr(streams, "DEVICES", [(*row[:3], bad if row[2] == 2 else row[3]) for row in streams.DEVICES])
    monkeypatch.setitem(streams.REASONS, "8", f"SKB_DROP_REASON_{bad}")

    found = compare(rec(100, 1), rec(100, 2, kinds=("filtered",)), names=(bad, "after"))

    page = found._repr_html_()
    assert bad not in page
    assert "&lt;script&gt;" in page
    assert len(page) < 200_000


def test_an_html_of_many_paths_stays_small(monkeypatch) -> None:
    kinds = {f"k{at}": [("tc_egress", streams.CLIENT, 2)] * (100 + 3 * at) for at in range(60)}
    monkeypatch.setattr(streams, "KINDS", kinds)

    found = compare(rec(300, 1, kinds=tuple(kinds)), rec(300, 2, kinds=tuple(kinds)))

    assert len(found._repr_html_()) < 200_000
    assert len(repr(found)) < 10_000


# Paths side by side


def test_hops_are_aligned_with_those_in_the_same_place() -> None:
    found = compare(rec(200, 1, kinds=("closed", "left")), rec(200, 2, kinds=("filtered",)))

    aligned = found.align()

    # Both end in kfree_skb, one in the server and one in the router.
    assert list(aligned.frame["side"]) == ["both"] * 8 + ["a"] * 9 + ["b"]
    assert (aligned.frame["func"].iloc[-1], aligned.frame["netns_b"].iloc[-1]) == ("kfree_skb", "router")
    assert aligned.divergence.hop == 8
    assert str(aligned.divergence.after) == "ip_rcv in netns router on left"
    assert str(aligned.divergence.a) == "__dev_queue_xmit in netns router on right"
    assert "8 of 18 hops in common" in repr(aligned)
    assert "The ways part after ip_rcv in netns router on left: a goes on to __dev_queue_xmit in netns" in repr(aligned)
    gaps = found.b.df["gap"].groupby(level="hop").median()
    assert abs(aligned.frame["gap_b"].iloc[3] - gaps[3]).value <= 1


def test_where_namespaces_have_other_names_paths_are_still_the_same(monkeypatch) -> None:
    before = rec(100, 1, kinds=("answered",))
    monkeypatch.setattr(streams, "DEVICES", [(*row[:3], f"x{row[3]}") for row in streams.DEVICES])

    found = compare(before, rec(100, 2, kinds=("answered",)))

    assert not claims(found.tables)
    assert found.align().divergence is None
    assert found.functions["compared_b"]["netif_rx"] == 100
