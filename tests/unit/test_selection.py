"""Some packets of a recording: by a filter on their headers, by columns, and by any rows of the frame of hops."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from streams import capture, facts_row, hop, of_hops, udp_frame

from bpfpath_nb.errors import FilterError, OptionError
from bpfpath_nb.filter import Filter
from bpfpath_nb.filter.stored import matches
from bpfpath_nb.recording import Recording

TCP = bytes.fromhex(
    "4500002800010000400600000a0000010a0000020050 1f90 00000000 00000000 5002 0000 0000 0000".replace(" ", "")
)
IP6 = bytes.fromhex("6000000000081140") + bytes(15) + b"\1" + bytes(15) + b"\2" + bytes.fromhex("1388003500080000")
ARP = bytes(12) + bytes.fromhex("0806 0001 0800 0604 0001".replace(" ", "")) + bytes(20)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return capture(300, seed=17, lost=0.01).recording()


def check_is_part_of(part: Recording, whole: Recording, packets: list[int]) -> None:
    """Everything that is said of a packet is what the whole recording says of it."""
    assert part.packets.index.tolist() == packets
    as_text = {name: "str" for name, dtype in whole.packets.dtypes.items() if dtype == "category"}
    pd.testing.assert_frame_equal(part.packets.astype(as_text), whole.packets.loc[packets].astype(as_text))
    rows = whole.df.index.get_level_values("packet").isin(packets)
    for name in ("time", "gap", "func", "skb", "flow"):
        assert part.df[name].dropna().tolist() == whole.df[name][rows].dropna().tolist()


def test_where_takes_the_packets_that_the_filter_takes(recording, tmp_path):
    part = recording.where("udp src portrange 40010-40012")
    check_is_part_of(part, recording, [11, 12, 13])
    assert part.where("src port 40011").packets.index.tolist() == [12]
    loaded = Recording.load(part.save(tmp_path / "part"))
    check_is_part_of(loaded, recording, [11, 12, 13])
    assert len(recording.where("tcp")) == 0
    assert len(recording.where("")) == len(recording)


def test_losses_are_those_of_the_whole_capture(recording):
    assert not recording.packets["complete"].all()
    assert recording.packets["complete"].any()
    part = recording.where("udp src portrange 40000-40149")
    for name in ("gaps", "events_lost"):
        assert part.quality[name] == recording.quality[name]


def test_a_packet_is_taken_for_any_of_its_headers():
    # Translated on its way, and one that has no headers at all.
    facts = np.concatenate([
        facts_row(udp_frame(1, 53)), facts_row(udp_frame(1, 53, src="192.0.2.1"), snapshot=1),
        facts_row(udp_frame(1, 53), packet=2),
    ])  # fmt: skip
    made = of_hops(
        hop("netif_rx"), hop("netif_rx", snapshot=1), hop("netif_rx", packet=2), hop("netif_rx", packet=3), facts=facts
    )
    assert made.where("host 192.0.2.1").packets.index.tolist() == [1]
    assert made.where("port 53").packets.index.tolist() == [1, 2]
    assert made.where("not host 192.0.2.1").packets.index.tolist() == [1, 2]
    assert made.where("").packets.index.tolist() == [1, 2, 3]


def test_where_says_what_it_cannot_answer(recording):
    with pytest.raises(FilterError, match="prot 53"):
        recording.where("udp prot 53")
    with pytest.raises(FilterError, match="columns of its frames"):
        recording.where("inbound")


def test_query_asks_the_columns_of_packets(recording):
    verdict = recording.packets["verdict"]
    wanted = "dropped"  # noqa: F841 - the query names it
    part = recording.query("verdict == @wanted and netns == 'client'")
    check_is_part_of(
        part, recording, verdict.index[(verdict == "dropped") & (recording.packets["netns"] == "client")].tolist()
    )
    assert (
        recording.query("namespaces.str.contains('server') and packet < 9")
        .packets["namespaces"]
        .str.contains("server")
        .all()
    )
    limit = recording.packets["total"].median()
    assert len(recording.query("total > @limit").packets) == (recording.packets["total"] > limit).sum()
    assert len(recording.query("verdict == 'nonsense'")) == 0


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("verdcit == 'dropped'", "no column.*verdcit.*verdict"),
        ("verdict == dropped", "no column.*dropped.*verdict"),
        ("verdict == 'dropped", "cannot be answered"),
        ("hops", "cannot be answered|no column"),
        ("(hops > 1", "cannot be answered"),
        ("hops in [1", "cannot be answered"),
        ("hops.iloc[10**9] > 1", "cannot be answered"),
        ("@nowhere == 1", "nowhere"),
    ],
)
def test_query_names_what_there_is(recording, expression, message):
    with pytest.raises(OptionError, match=f"(?s){message}"):
        recording.query(expression)


def test_a_query_that_cannot_be_answered_is_told_in_a_few_lines(recording):
    for expression in ("x" * 100_000, "hops > '" + "\x1b[2J" * 10_000 + "'", "hops > 1" + " and hops > 1" * 3000):
        with pytest.raises(OptionError) as caught:
            recording.query(expression)
        assert len(str(caught.value)) < 1200
        assert str(caught.value).isprintable()


FILTERS = (
    "udp port 53", "tcp[tcpflags] & tcp-syn != 0", "ip6 and udp", "arp", "vlan 5 and udp", "host 10.0.0.2", "less 60",
    "ether[0] & 1 = 0 and ip[2:2] > 40", "not ip", "ip[(ip[0] & 15) * 4 + 2:2] = 53", "len % 7 = 0", "vlan",
    "ip[8] / (ip[9] - 5) > 5", "len << (ip[8] - 40) > 100", "tcp or udp portrange 50-60", "udp[8:4] ^ 3 | 1 > len - 9",
    "ip proto 6 and ip[6:2] & 0x1fff = 0", "greater 100", "-ip[8] > len * 3 >> 2",
)  # fmt: skip


def some_facts(seed: int, count: int = 200) -> np.ndarray:
    """Headers of all kinds, cut short and damaged in places."""
    random = np.random.default_rng(seed)
    ethernet = [
        udp_frame(5000, 53),
        ARP,
        bytes(12) + b"\x08\x00" + TCP,
        bytes(12) + b"\x86\xdd" + IP6,
        udp_frame(1, 2, payload=99),
    ]
    ethernet += [frame[:12] + bytes.fromhex("81000005") + frame[12:] for frame in ethernet[:3]]
    kinds = [(1, frame) for frame in ethernet] + [(101, TCP), (101, IP6), (101, udp_frame(5000, 53)[14:])]
    facts = np.concatenate([facts_row(kinds[at][1], link=kinds[at][0]) for at in random.integers(0, len(kinds), count)])
    facts["packet"] = np.arange(count) + 1
    tagged = random.random(count) < 0.2
    facts["vlan_tpid"][tagged], facts["vlan_tci"][tagged] = 0x8100, random.choice([5, 9], tagged.sum())
    damaged = np.flatnonzero(random.random(count) < 0.3)
    facts["headers"][damaged, random.integers(0, 60, len(damaged))] = random.integers(0, 256, len(damaged))
    short = np.flatnonzero(random.random(count) < 0.2)
    facts["caplen"][short] = random.integers(0, facts["caplen"][short] + 1)
    facts["headers"][np.arange(128) >= facts["caplen"][:, None]] = 0
    return facts


@pytest.mark.parametrize("expression", FILTERS)
def test_many_packets_at_once_get_the_verdict_of_libpcap(expression):
    wanted, facts = Filter(expression), some_facts(seed=len(expression))
    one_by_one = [
        wanted.matches(
            row["headers"].tobytes()[: row["caplen"]],
            link="ethernet" if row["link"] == 1 else "raw",
            length=int(row["len"]),
            vlan=(int(row["vlan_tpid"]), int(row["vlan_tci"])) if row["vlan_tpid"] else None,
        )
        for row in facts
    ]
    assert matches(wanted, facts).tolist() == one_by_one
    assert 0 < sum(one_by_one) < len(facts), "a filter that tells packets apart"


def test_two_hundred_thousand_packets_are_filtered_in_a_moment():
    facts = np.tile(some_facts(seed=1), 1000)
    begin = time.process_time()
    found = matches(Filter("host 10.0.0.2 and tcp[tcpflags] & tcp-syn != 0"), facts)
    assert time.process_time() - begin < 3
    assert found.sum() == 1000 * found[:200].sum() > 0


def test_the_whole_frame_answers_as_the_recording_does(recording):
    hops = recording.df.bpfpath
    for name in ("functions", "transitions"):
        pd.testing.assert_frame_equal(getattr(hops, name), getattr(recording, name))
    pd.testing.assert_frame_equal(hops.latency(by=["netns", "func"]), recording.latency(by=["netns", "func"]))
    pd.testing.assert_frame_equal(hops.latency("packet"), recording.latency("packet"))
    pd.testing.assert_frame_equal(hops.paths.drop(columns="verdict"), recording.paths.drop(columns="verdict"))
    assert hops.paths["verdict"].isna().all()
    pd.testing.assert_frame_equal(hops.packets, recording.packets[list(hops.packets.columns)])


def test_a_filtered_frame_answers_for_its_rows(recording):
    df = recording.df
    part = df[df["func"].isin(["netif_rx", "netif_receive_skb"]) & (df["netns"] == "router")]
    transitions = part.bpfpath.transitions
    assert transitions.index.tolist() == [("netif_rx", "netif_receive_skb")]
    both = part.groupby(level="packet")["time"].agg(lambda times: times.diff().iloc[-1]).dropna()
    assert transitions.iloc[0][["count", "max", "kind", "queue"]].tolist() == [len(both), both.max(), "wait", "backlog"]
    assert (
        part.bpfpath.functions["hits"].to_dict() == part["func"].value_counts().loc[lambda count: count > 0].to_dict()
    )
    assert set(part.bpfpath.paths["functions"]) <= {"netif_rx > netif_receive_skb", "netif_rx", "netif_receive_skb"}


def test_the_order_of_the_rows_does_not_matter(recording):
    shuffled = recording.df.sample(frac=1, random_state=1)
    for name in ("paths", "functions", "transitions", "packets"):
        pd.testing.assert_frame_equal(getattr(shuffled.bpfpath, name), getattr(recording.df.bpfpath, name))
    flat = recording.df.reset_index()
    pd.testing.assert_frame_equal(flat.bpfpath.transitions, recording.transitions)


def test_concatenated_frames_keep_their_packets_apart(recording):
    other = capture(100, seed=19).recording()
    both = pd.concat({"before": recording.df, "after": other.df}, names=["capture"])
    paths = both.bpfpath.paths
    expected = recording.paths["packets"].add(other.paths["packets"], fill_value=0)
    assert paths["packets"].to_dict() == expected.to_dict()
    assert both.bpfpath.packets.index.names == ["capture", "packet"]
    assert both.bpfpath.latency("capture")["hits"].to_dict() == {"before": len(recording), "after": len(other)}
    with pytest.raises(OptionError, match="concat"):
        _ = pd.concat([recording.df, other.df]).bpfpath.paths


def test_a_query_for_a_moment_without_a_zone_is_told_of_it(recording):
    moment = recording.packets["first"].iloc[len(recording.packets) // 2]
    with pytest.raises(OptionError, match="with their zone"):
        recording.query(f"first >= '{moment.tz_localize(None)}'")
    assert len(recording.query(f"first >= '{moment}'").packets) == (recording.packets["first"] >= moment).sum()


def test_concatenated_frames_need_no_name_for_their_keys(recording):
    other = capture(100, seed=19).recording()
    both = pd.concat({"before": recording.df, "after": other.df})
    assert len(both.bpfpath.packets) == len(recording.packets) + len(other.packets)
    assert both.bpfpath.functions["hits"].sum() == len(both)


def test_a_frame_that_lacks_columns_is_told_which(recording):
    df = recording.df
    for name in ("paths", "functions", "transitions", "packets"):
        with pytest.raises(OptionError, match="lacks 'func'"):
            getattr(df.drop(columns="func").bpfpath, name)
    with pytest.raises(OptionError, match="'skb', 'pid', 'cpu'"):
        _ = df.drop(columns=["skb", "pid", "cpu"]).bpfpath.transitions
    with pytest.raises(OptionError, match="'packet', 'hop', 'time'"):
        _ = df.drop(columns="time").reset_index(drop=True).bpfpath.paths
    with pytest.raises(OptionError, match="lacks 'gap'"):
        df.drop(columns="gap").bpfpath.latency()


def test_an_empty_frame_answers_with_empty_frames(recording):
    for frame in (recording.df[:0], recording.df[:0].copy()):
        for name in ("paths", "functions", "transitions", "packets"):
            answer = getattr(frame.bpfpath, name)
            assert len(answer) == 0
            whole = getattr(recording.df.bpfpath, name)
            assert answer.dtypes.astype(str).to_dict() == whole.dtypes.astype(str).to_dict()


def test_paths_are_the_same_on_kernels_that_renamed_a_function():
    def of(*names: str) -> Recording:
        functions = [{"name": name, "layer": "ip", "probe": "kprobe"} for name in names]
        return of_hops(*({"func": at} for at in range(len(names))), functions=functions)

    old, new = (
        of("ip_rcv", "nf_nat_ipv4_manip_pkt", "kfree_skb"),
        of("ip_rcv", "nf_nat_manip_pkt.constprop.0", "sk_skb_reason_drop"),
    )
    assert old.paths.index.tolist() == new.paths.index.tolist()
    assert old.paths["functions"].iloc[0] == "ip_rcv > nf_nat_ipv4_manip_pkt > kfree_skb"
    assert of("ip_rcv", "kfree_skb").paths.index.tolist() != old.paths.index.tolist()


def test_paths_are_the_same_however_our_filter_at_traffic_control_is_attached():
    def of(*names: str) -> str:
        functions = [{"name": name, "layer": "ip", "probe": "kprobe"} for name in dict.fromkeys(names)]
        hops = ({"func": list(dict.fromkeys(names)).index(name)} for name in names)
        return of_hops(*hops, functions=functions).paths.index.item()

    ours = of("tcf_classify", "cls_bpf_classify", "tc_ingress", "ip_rcv")
    assert ours == of("tc_ingress", "ip_rcv")
    # Somebody else's filter, before ours or behind it, is one.
    assert of("tcf_classify", "cls_bpf_classify", "cls_bpf_classify", "tc_ingress", "ip_rcv") != ours
    assert of("tc_ingress", "tcf_classify", "cls_bpf_classify", "ip_rcv") != ours
