"""Every rule of advice.toml explains the real thing: recordings of provoked causes, on kernels that tell unlike much.

That of Linux 6.18 was made with tracepoints alone. 5.10, 6.1, 6.12 and 7.2 are Debian's, with kprobes; the newer, the
more reasons they give, and 5.10 gives none at all. `python -m bpfpath_nb.lab.cases` makes the recordings; beside each
stands when which case was on.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import ENTRY, FUNCTIONS, MONOTONIC, capture, facts_row, of_hops, tcp_frame, udp_frame
from streams import Capture as Made

from bpfpath_nb import Recording, sample, schema
from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.advice import match_drops, rules
from bpfpath_nb.analysis.symptoms import KINDS
from bpfpath_nb.diagnosis import Diagnosis
from bpfpath_nb.errors import OptionError
from bpfpath_nb.lab.cases import CASES
from bpfpath_nb.schema import EVENT_DTYPE

RECORDINGS = Path(__file__).parents[1] / "recordings"

# Of each rule a recording and the case in it that the rule has to explain.
EVIDENCE = {
    "netfilter-forward": ("cases-6.18", "nft_forward"),
    "netfilter-input": ("cases-6.18", "nft_input"),
    "netfilter-output": ("cases-6.18", "nft_output"),
    "netfilter-prerouting": ("cases-6.18", "nft_prerouting"),
    "netfilter-postrouting": ("cases-6.18", "nft_postrouting"),
    "netfilter": ("stackless", "nft_forward"),
    "xfrm-policy": ("cases-6.18", "xfrm_policy"),
    "xdp": ("cases-6.18", "xdp_drop"),
    "tc-ingress": ("cases-6.18", "tc_ingress_drop"),
    "tc-egress": ("cases-6.18", "tc_egress_drop"),
    "socket-filter": ("cases-6.18", "socket_filter"),
    "qdisc": ("cases-6.18", "qdisc_full"),
    "neighbour-failed": ("cases-6.18", "neighbour_failed"),
    "neighbour-queue": ("cases-6.18", "neighbour_queue_full"),
    "other-host": ("cases-6.18", "other_host"),
    "unknown-ethertype": ("cases-6.18", "unknown_ethertype"),
    "bridge-blocked": ("cases-6.18", "bridge_port_blocked"),
    "bridge-no-target": ("cases-6.18", "bridge_no_target"),
    "bridge-source": ("cases-6.18", "bridge_invalid_source"),
    "bridge-handed-in": ("cases-5.10", "bridge_port_blocked"),
    "vxlan": ("cases-5.10", "vxlan_bad_header"),
    "forward-silent": ("cases-5.10", "ttl_exceeded"),
    "ip-silent": ("cases-5.10", "ip_checksum"),
    "transmit-silent": ("cases-5.10", "tc_egress_drop"),
    "receive-silent": ("cases-5.10", "tc_ingress_drop"),
    "udp-silent": ("cases-5.10", "udp_checksum"),
    "udp-queue-silent": ("cases-5.10", "socket_filter"),
    "source-silent": ("cases-5.10", "rp_filter"),
    "vxlan-network": ("cases-6.18", "vxlan_unknown_network"),
    "vxlan-header": ("cases-6.18", "vxlan_bad_header"),
    "tun-full": ("cases-6.18", "tun_full"),
    "ip-checksum": ("cases-6.18", "ip_checksum"),
    "ttl": ("cases-6.18", "ttl_exceeded"),
    "ip-header": ("cases-6.18", "ip_header"),
    "udp-short": ("cases-6.18", "udp_length"),
    "too-short": ("cases-6.18", "ip_truncated"),
    "rp-filter": ("cases-6.18", "rp_filter"),
    "own-source": ("cases-6.18", "own_source"),
    "martian-source": ("cases-6.18", "martian_source"),
    "loopback-address": ("cases-6.18", "loopback_address"),
    "invalid-destination": ("cases-6.18", "invalid_destination"),
    "unicast-in-broadcast": ("cases-6.18", "unicast_in_broadcast"),
    "not-forwarding": ("cases-6.18", "forwarding_off"),
    "no-route": ("cases-6.18", "no_route"),
    "route-refuses": ("cases-6.18", "blackhole_route"),
    "mtu": ("cases-6.18", "mtu"),
    "fragment-timeout": ("cases-6.18", "fragment_missing"),
    "fragment-twice": ("cases-6.18", "fragment_twice"),
    "unknown-protocol": ("cases-6.18", "unknown_protocol"),
    "ipv6-off": ("cases-6.18", "ipv6_disabled"),
    "icmp-checksum": ("cases-6.18", "icmp_checksum"),
    "udp-no-socket": ("cases-6.18", "udp_no_socket"),
    "tcp-no-socket": ("cases-6.18", "tcp_no_socket"),
    "udp-buffer": ("cases-6.18", "udp_buffer_full"),
    "udp-checksum": ("cases-6.18", "udp_checksum"),
    "socket-closed": ("cases-6.18", "udp_closed_unread"),
    "tcp-listen-overflow": ("cases-6.18", "tcp_listen_overflow"),
    "tcp-checksum": ("cases-6.18", "tcp_checksum"),
    "tcp-window": ("cases-6.18", "tcp_out_of_window"),
    "tcp-old-data": ("cases-6.18", "tcp_old_data"),
    "tcp-ack-unsent": ("cases-6.18", "tcp_ack_unsent"),
    "tcp-syn": ("cases-6.18", "tcp_syn_again"),
    "tcp-flags": ("cases-6.18", "tcp_flags"),
    "tcp-paws": ("cases-6.18", "tcp_paws"),
    "tcp-after-close": ("cases-6.18", "tcp_abort_on_data"),
    "tcp-purged": ("cases-6.18", "tcp_syn_unanswered"),
    "tcp-min-ttl": ("cases-6.18", "tcp_min_ttl"),
    "tcp-silent": ("cases-6.18", "tcp_reset_half_open"),
    "multicast-unwanted": ("cases-6.18", "multicast_unwanted"),
    "not-said": ("cases-6.18", "tun_full"),
    "other-reason": ("cases-6.18", "ndisc_hop_limit"),
    "wait-qdisc": ("cases-6.18", "qdisc_delay"),
    "wait-neighbour": ("cases-6.18", "neighbour_late"),
    "wait-socket": ("cases-6.18", "udp_read_late"),
    "wait-out-of-order": ("out-of-order-6.18", "tcp_out_of_order"),
    "unread": ("cases-6.18", "udp_unread"),
    "unfinished": ("unfinished-6.18", "fragment_waits"),
    "loop": ("cases-6.18", "routing_loop"),
    "duplicate": ("cases-6.18", "duplicates"),
    "asymmetric": ("cases-6.18", "asymmetric_path"),
    "nat": ("cases-6.18", "nat"),
    "arp-unanswered": ("cases-6.18", "neighbour_failed"),
    "tcp-syn-unanswered": ("cases-6.18", "tcp_syn_unanswered"),
    "tcp-retransmission": ("cases-6.18", "tcp_retransmission"),
    "tcp-reset": ("cases-6.18", "tcp_reset"),
    "tcp-zero-window": ("cases-6.18", "tcp_slow_reader"),
    "icmp-port": ("cases-6.18", "nft_reject"),
    "icmp-prohibited": ("cases-6.18", "prohibit_route"),
    "icmp-too-big": ("cases-6.18", "mtu"),
    "icmp-ttl": ("cases-6.18", "routing_loop"),
    "icmp-reassembly": ("cases-6.18", "fragment_missing"),
    "icmp-protocol": ("cases-6.18", "unknown_protocol"),
    "icmp-unreachable": ("cases-6.18", "ip6_no_route"),
    "losses": ("lossy-6.18", "udp_buffer_full"),
}

# What a kernel makes of a case of which 6.18 says more.
SAID_BY_6_12 = {
    "bridge-blocked": "bridge-handed-in",
    "bridge-no-target": "bridge-handed-in",
    "bridge-source": "bridge-handed-in",
    "own-source": "source-silent",
    "martian-source": "source-silent",
    "loopback-address": "source-silent",
    "invalid-destination": "source-silent",
    "tcp-listen-overflow": "tcp-silent",
}
LESS_SAID = {
    "6.1": SAID_BY_6_12 | {
        "vxlan-network": "vxlan", "vxlan-header": "vxlan", "tcp-after-close": "tcp-silent", "tcp-min-ttl": "tcp-silent",
    },
    "6.12": SAID_BY_6_12,
    "7.2": {},
}  # fmt: skip
NOT_TOLD = {("6.1", "other-reason")}  # its case is one of ICMPv6, which before 6.3 frees alike what it drops and used


@cache
def diagnosed(name: str) -> tuple[Diagnosis, dict[str, list[int]]]:
    if name == "stackless":  # as files of version 1 are
        recording, windows = diagnosed("cases-6.18")
        events = recording.recording.events
        return Recording(replace(events, stacks=events.stacks[:0])).diagnose(), windows
    path = RECORDINGS / f"{name}.json"
    windows = json.loads(path.read_text()) if path.exists() else {}
    return Recording.load(RECORDINGS / f"{name}.parquet").diagnose(), windows


@cache
def found(name: str) -> dict[str, dict[str, int]]:
    """By case and rule the first finding that packets of the case show."""
    diagnosis, windows = diagnosed(name)
    first = diagnosis.recording.packets["first"].astype("int64")
    by_case: dict[str, dict[str, int]] = {case: {} for case in windows}
    for finding, rule in enumerate(diagnosis.findings["rule"]):
        begun = first.loc[diagnosis.packets(finding)].to_numpy()
        for case, (begin, end) in windows.items():
            if ((begun >= begin) & (begun < end)).any():
                by_case[case].setdefault(rule, finding)
    return by_case


def case_finding(rule: str) -> pd.Series:
    recording, case = EVIDENCE[rule]
    return diagnosed(recording)[0].findings.iloc[found(recording)[case][rule]]


def test_there_are_rules_enough_and_each_has_its_evidence() -> None:
    assert [rule.id for rule in rules()] == list(dict.fromkeys(rule.id for rule in rules()))
    assert {rule.id for rule in rules()} == set(EVIDENCE)
    assert len(rules()) >= 40
    assert {rule.kind for rule in rules()} == set(KINDS)


@pytest.mark.parametrize("rule", EVIDENCE)
def test_a_rule_explains_the_real_thing(rule: str) -> None:
    recording, case = EVIDENCE[rule]

    assert rule in found(recording)[case], f"found instead: {list(found(recording)[case])}"


@pytest.mark.parametrize("release", LESS_SAID)
@pytest.mark.parametrize("rule", [rule for rule, (recording, _) in EVIDENCE.items() if recording == "cases-6.18"])
def test_a_stock_kernel_with_kprobes_shows_the_same(rule: str, release: str) -> None:
    shown = found(f"cases-{release}")[EVIDENCE[rule][1]]

    is_shown = LESS_SAID[release].get(rule, rule) in shown

    assert is_shown is ((release, rule) not in NOT_TOLD), f"found instead: {list(shown)}"


@pytest.mark.parametrize(
    ("recording", "functions"),
    [
        ("cases-6.18", {"tun_queue_purge", "icmpv6_rcv"}),
        ("cases-7.2", {"tun_queue_purge", "icmpv6_rcv"}),
        ("cases-6.12", {"tun_queue_purge", "icmpv6_rcv"}),
        ("cases-6.1", {"tun_queue_purge"}),
        ("cases-5.10", {"tun_queue_purge", "icmp_rcv"}),
    ],
)
def test_every_drop_of_a_case_is_explained_by_its_own_rule(recording: str, functions: set[str]) -> None:
    """What general rules are for, is only what the kernel says nothing of."""
    findings = diagnosed(recording)[0].findings
    general = findings[findings["rule"].isin(["not-said", "other-reason"])]

    assert set(general["func"]) == functions


def test_ordinary_traffic_is_not_called_faulty() -> None:
    diagnosis, _ = diagnosed("cases-6.18")
    told = diagnosis.findings.loc[list(found("cases-6.18")["ordinary"].values())]

    # A busy machine may let a program read late; that is a warning.
    assert set(told["rule"]) <= {"wait-socket"}


def test_kernels_without_reasons_are_explained_by_function() -> None:
    findings = diagnosed("cases-5.10")[0].findings
    explained = {case: set(rules_) for case, rules_ in found("cases-5.10").items()}

    assert findings["reason"].isna().all()
    expected = {
        "nft_forward": "netfilter-forward", "nft_input": "netfilter-input", "nft_output": "netfilter-output",
        "nft_postrouting": "netfilter-postrouting", "udp_no_socket": "udp-silent",
        "udp_buffer_full": "udp-queue-silent",
        "neighbour_failed": "neighbour-failed", "neighbour_queue_full": "neighbour-queue", "no_route": "route-refuses",
        "rp_filter": "source-silent", "fragment_missing": "fragment-timeout", "fragment_twice": "fragment-twice",
        "unknown_protocol": "unknown-protocol", "qdisc_full": "transmit-silent", "tun_full": "tun-full",
        "tcp_checksum": "tcp-silent", "tcp_retransmission": "tcp-retransmission", "routing_loop": "loop",
        "tcp_syn_unanswered": "tcp-syn-unanswered", "udp_closed_unread": "socket-closed", "mtu": "icmp-too-big",
    }  # fmt: skip
    assert {case: explained[case] for case, rule in expected.items() if rule not in explained[case]} == {}


def test_a_full_table_of_connections_is_looked_for() -> None:
    finding = found("cases-6.12")["conntrack_full"]["netfilter-prerouting"]

    check = diagnosed("cases-6.12")[0].findings["check"].iloc[finding]

    assert "ip netns exec router sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max" in check


@pytest.mark.parametrize("release", LESS_SAID)
def test_what_tcp_sends_again_goes_round_in_no_circle(release: str) -> None:
    looping = {case for case, rules_ in found(f"cases-{release}").items() if "loop" in rules_}

    assert looping == {"routing_loop"}


@pytest.mark.parametrize(
    ("rule", "command"),
    [
        ("netfilter-forward", "ip netns exec router nft list ruleset"),
        ("rp-filter", "ip netns exec router sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.eth0.rp_filter"),
        ("rp-filter", "ip netns exec router ip route get 10.0.2.99"),
        ("no-route", "ip netns exec router ip route get 10.8.0.1 from 10.0.1.1 iif eth0"),
        ("udp-no-socket", "ip netns exec server ss -lunp 'sport = :7301'"),
        ("udp-buffer", "ip netns exec server nstat -az UdpRcvbufErrors Udp6RcvbufErrors"),
        ("wait-qdisc", "ip netns exec client tc -s -d qdisc show dev eth0"),
        ("tcp-zero-window", "ip netns exec server ss -tnmip 'sport = :7321'"),
        ("icmp-too-big", "ip netns exec router ip link show"),
        ("netfilter-postrouting", "ip netns exec router ip route get 10.0.2.2 oif eth1"),
        ("tcp-syn-unanswered", "ip netns exec server ss -ltnp 'sport = :7324'"),
    ],
)
def test_commands_are_of_the_case(rule: str, command: str) -> None:
    assert command in case_finding(rule)["check"].splitlines()


def test_evidence_is_the_rows_that_show_it() -> None:
    diagnosis, _ = diagnosed("cases-6.18")
    finding = found("cases-6.18")["udp_buffer_full"]["udp-buffer"]
    row, evidence = diagnosis.findings.iloc[finding], diagnosis.evidence(finding)

    assert set(evidence["reason"]) == {"SOCKET_RCVBUFF"}
    assert len(diagnosis.packets(finding)) == row["packets"] == len(evidence)
    assert (evidence["time"].min(), evidence["time"].max()) == (row["first"], row["last"])
    assert row["share"] == row["packets"] / len(diagnosis.recording.packets)
    assert row["example"] in diagnosis.packets(finding)
    with pytest.raises(OptionError, match="no finding 999"):
        diagnosis.evidence(999)


@pytest.mark.parametrize(
    ("function", "rules_"),
    [("__ip6_local_out", {"tcp-syn-unanswered"}), ("__ip_local_out", {"tcp-syn-unanswered"}), ("ip6_output", set())],
)
def test_a_packet_sets_out_where_its_host_sends_it_and_not_where_a_router_does(function: str, rules_: set[str]) -> None:
    functions = [{"name": function, "layer": "ip", "probe": "kprobe", "target": function, "role": ""}]
    asked = of_hops({"flags": ENTRY}, {}, functions=functions, facts=facts_row(tcp_frame(2)))
    assert set(asked.diagnose().findings["rule"]) - {"unfinished"} == rules_


@pytest.mark.parametrize(("begins_at", "rules_"), [(0, {"unread"}), (100, {"unfinished"})])
def test_a_fragment_lies_in_no_socket(begins_at: int, rules_: set[str]) -> None:
    functions = [{"name": "nf_input", "layer": "netfilter", "probe": "tracepoint", "target": "nf_input", "role": ""}]
    frame = bytearray(udp_frame(5000, 53))
    frame[20:22] = begins_at.to_bytes(2)
    waiting = {"flags": ENTRY, "time": MONOTONIC}, {"packet": 2, "time": MONOTONIC + 10**9}
    found_ = of_hops(*waiting, functions=functions, facts=facts_row(bytes(frame))).diagnose().findings
    assert set(found_.loc[found_["example"] == 1, "rule"]) == rules_


def test_a_wait_tells_how_long_it_was_at_most() -> None:
    waited, dropped = case_finding("wait-qdisc"), case_finding("qdisc")

    assert pd.Timedelta("100ms") < waited["longest"] < pd.Timedelta("1s")  # 3,000 bytes at 80 kbit/s beyond the burst
    assert pd.isna(dropped["longest"])


def test_findings_have_their_types_also_where_there_are_none() -> None:
    for recording in (diagnosed("cases-6.18")[0].recording, capture(0).recording()):
        frame = recording.diagnose().findings
        assert [(name, str(dtype)) for name, dtype in frame.dtypes.items()] == [
            (column.name, column.dtype) for column in schema.FINDINGS
        ]


def test_a_clean_recording_says_so() -> None:
    recording = capture(20, kinds=("answered", "left")).recording()

    diagnosis = recording.diagnose()

    assert len(diagnosis) == 0
    assert repr(diagnosis).startswith("Nothing is wrong in 20 packets")
    assert "Nothing is wrong" in diagnosis._repr_html_()
    assert "There are no packets" in repr(capture(0).recording().diagnose())


def test_losses_are_one_finding_of_no_place() -> None:
    diagnosis, _ = diagnosed("lossy-6.18")
    losses = np.flatnonzero(diagnosis.findings["rule"] == "losses")

    row = diagnosis.findings.iloc[losses[0]]

    assert len(losses) == 1
    assert row[["netns", "dev", "func"]].isna().all()
    packets = diagnosis.recording.packets
    assert diagnosis.packets(losses[0]).tolist() == packets.index[~packets["complete"]].tolist()
    assert "the capture itself lost events" in repr(diagnosis)


@pytest.mark.parametrize(
    ("release", "frees"),
    [("5.10", "kfree_skb_list"), ("6.1", "kfree_skb_list_reason"), ("7.2", "__tcf_kfree_skb_list")],
)
def test_who_had_a_list_of_packets_freed_is_who_gave_them_up(release: str, frees: str) -> None:
    """Kernels before 6.3, and 7.2 of what queues refused, tell the address of the function that frees the list."""
    drops = diagnosed(f"cases-{release}")[0].recording.drops

    assert {frees, "skb_rbtree_purge"}.isdisjoint(drops["func"])
    assert drops.loc[drops["stack"].str.contains(f"{frees} <"), "func"].tolist() == ["__dev_queue_xmit"] * 3


def test_the_gravest_come_first() -> None:
    findings = diagnosed("cases-6.18")[0].findings
    grave = findings["severity"].map({name: at for at, name in enumerate(schema.SEVERITIES)}).astype(int)

    assert grave.is_monotonic_increasing
    assert findings[findings["severity"] == "fault"]["packets"].is_monotonic_decreasing


def test_drops_carry_the_same_advice() -> None:
    drops = diagnosed("cases-6.18")[0].recording.drops

    assert drops["advice"].notna().all()
    rp_filter = drops[drops["reason"] == "IP_RPFILTER"]["advice"].astype(str)
    assert set(rp_filter) == {
        "the way back to the source leads through another interface: see sysctl rp_filter; ip route get the source"
    }


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_anything_that_was_recorded_can_be_diagnosed(seed: int) -> None:
    random = np.random.default_rng(seed)
    events = np.zeros(random.integers(0, 40), EVENT_DTYPE)
    for name in ("skb", "location", "packet", "netns", "ifindex", "reason", "snapshot", "flags"):
        events[name] = random.integers(0, random.choice([2, 4, 16]), len(events))
    events["func"] = random.integers(0, len(FUNCTIONS), len(events))
    events["time"] = random.integers(0, 10**9, len(events))
    facts = np.zeros(random.integers(0, 20), schema.FACTS_DTYPE)
    facts["headers"] = random.integers(0, 256, facts["headers"].shape)
    facts["headers"][:, 12:14] = random.choice([[8, 0], [8, 6], [0x86, 0xDD]], len(facts))
    facts["headers"][:, 14] = random.choice([0x45, 0x60, 0], len(facts))
    facts["headers"][:, 23] = random.choice([1, 6, 17], len(facts))
    for name, most in (("packet", 4), ("snapshot", 2), ("parent", 2), ("link", 3), ("caplen", 129)):
        facts[name] = random.integers(0, most, len(facts))
    recording = Made(events, facts, np.empty(0), {"events_lost": int(random.integers(0, 2))}).recording()

    diagnosis = recording.diagnose()

    assert repr(diagnosis)
    assert diagnosis._repr_html_()
    for finding in range(len(diagnosis)):
        assert len(diagnosis.evidence(finding)) > 0


def test_a_page_stays_small() -> None:
    diagnosis, _ = diagnosed("cases-6.18")
    swollen = diagnosis.findings.assign(check="\n".join(['"' * 300] * 9), flow='"' * 400)

    for findings in (diagnosis.findings, swollen):
        page = Diagnosis(diagnosis.recording, findings, [])._repr_html_()
        assert len(page.encode()) < 200_000
        assert "more in <code>.findings</code>" in page


def test_each_drop_has_a_rule_even_an_unknown_one() -> None:
    def named(text: str) -> names.Named:
        return names.Named(np.zeros(1, np.int8), [text])

    nothing = names.Named(np.full(1, -1, np.int8), [])

    unheard = match_drops(named("NEVER_HEARD_OF"), named("f"), nothing, nothing)
    unsaid = match_drops(nothing, named("f"), nothing, nothing)

    assert rules()[unheard[0]].id == "other-reason"
    assert rules()[unsaid[0]].id == "not-said"


@pytest.mark.parametrize("recording", ["cases-7.2", "cases-6.18", "cases-6.12", "cases-6.1", "cases-5.10"])
def test_the_recordings_hold_every_case(recording: str) -> None:
    own_machine = recording != "cases-6.18"

    apart = set(diagnosed("unfinished-6.18")[1]) | set(diagnosed("out-of-order-6.18")[1])
    assert {name for name, case in CASES.items() if own_machine or not case.whole_machine} == (
        diagnosed(recording)[1].keys() | apart
    )


def test_the_sample_is_diagnosed() -> None:
    diagnosis = sample("dns").diagnose()

    assert {"udp-no-socket"} <= set(diagnosis.findings["rule"])
