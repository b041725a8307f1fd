"""What was captured on each stock kernel, read here: the same traffic, told by four kernels that tell different things.

`BPFPATH_RECORD=1 make test-kernels` made the files, as root.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bpfpath_nb import Recording, compare
from bpfpath_nb.analysis.ends import real_drops
from bpfpath_nb.kernel import Kernel, facts, reasons
from bpfpath_nb.lab.cases import CASES
from bpfpath_nb.tracer import probes
from bpfpath_nb.tracer.request import Request

TESTS = Path(__file__).parents[1]
RECORDED = ("5.10", "6.1", "6.12", "7.2")
STOCK = ("5.10", "6.1", "6.12", "7.2")
TYPED = STOCK[1:]  # whose modules have BTF


@pytest.fixture(scope="module")
def recordings() -> dict[str, Recording]:
    return {release: Recording.load(TESTS / "recordings" / f"stock-{release}.parquet") for release in RECORDED}


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return {release: facts.load(TESTS / "facts" / f"{release}.json.gz") for release in STOCK}


@pytest.mark.parametrize("release", RECORDED)
def test_three_queries_end_as_they_did(recordings: dict[str, Recording], release: str) -> None:
    packets = recordings[release].packets
    dns = packets[(packets["sport"] == 53) | (packets["dport"] == 53)]
    assert dns["verdict"].tolist() == ["delivered", "delivered", "dropped", "dropped"]
    assert dns["namespaces"].iloc[0] == "client > router > server"
    if release != "5.10":
        assert dns["reason"].tolist()[2:] == ["NETFILTER_DROP", "NO_SOCKET"]
    assert recordings[release].quality["events_lost"] == 0


@pytest.mark.parametrize(("old", "new", "least"), [("6.1", "6.12", 15), ("6.12", "7.2", 15), ("5.10", "7.2", 5)])
def test_paths_are_the_same_on_other_kernels(recordings: dict[str, Recording], old: str, new: str, least: int) -> None:
    """Not all of them: kernels free in other places, and neighbours are resolved at other times."""
    before, after = recordings[old], recordings[new]

    both = set(before.paths.index) & set(after.paths.index)
    compared = compare(before, after).paths

    assert len(both) >= least
    assert both <= set(compared.index[(compared["packets_a"] > 0) & (compared["packets_b"] > 0)])


@pytest.mark.parametrize("release", RECORDED)
def test_a_ping_is_read(recordings: dict[str, Recording], release: str) -> None:
    packets = recordings[release].packets
    replies = packets[packets["flow"].astype(str).str.contains("echo reply")]
    assert replies["verdict"].tolist() == ["delivered"] * 3


@pytest.mark.parametrize("release", RECORDED)
def test_fragments_are_part_of_what_they_were_cut_from(recordings: dict[str, Recording], release: str) -> None:
    """An echo with 4000 bytes, whose sender's packet was followed before it was cut, and the answer."""
    packets = recordings[release].packets
    cut = packets[packets["flow"].astype(str).str.contains("icmp fragment")]
    assert cut["verdict"].tolist() == ["consumed"] * 4
    assert cut["merged_into"].tolist() == cut["parent"].tolist()
    assert packets.loc[cut["parent"].unique(), "verdict"].tolist() == ["consumed", "delivered"]


@pytest.mark.parametrize("release", RECORDED)
def test_a_ping_over_ipv6_is_used_up_where_it_is_answered(recordings: dict[str, Recording], release: str) -> None:
    """Kernels before 6.3 free it as they free what they drop."""
    packets = recordings[release].packets
    asked = packets[packets["flow"].astype(str).str.contains("icmp6 echo request")]
    assert set(zip(asked["verdict"], asked["where"], strict=True)) == {("consumed", "icmpv6_rcv")}


@pytest.mark.parametrize("release", ["5.10", "6.1", "6.12", "6.18", "7.2"])
def test_tcp_data_that_nobody_read_is_lost_when_the_socket_is_closed(release: str) -> None:
    recording = Recording.load(TESTS / "recordings" / f"cases-{release}.parquet")
    lost = recording.packets.query("dport == 7326 and where == '__tcp_close' and length > 100")
    assert set(lost["verdict"]) == {"dropped"}
    advice = recording.drops.set_index("packet").loc[lost.index, "advice"]
    assert advice.str.contains("closed its socket with data").all()


def test_tcp_tells_its_own_drops_where_the_kernel_has_no_reasons() -> None:
    """5.10 frees what TCP drops as it frees what TCP has used; among these are the resets and the last answers."""
    recording = Recording.load(TESTS / "recordings" / "tcp-5.10.parquet")
    ports = {
        "tcp_out_of_window": 7315, "tcp_old_data": 7316, "tcp_ack_unsent": 7317, "tcp_syn_again": 7318,
        "tcp_flags": 7319, "tcp_paws": 7327, "tcp_out_of_order_twice": 7328, "tcp_zero_window": 7326,
    }  # fmt: skip
    packets = recording.packets
    told = [function.name for function in recording.start.functions if function.role == "drop"]
    assert told == ["tcp_drop", "kfree_skb"]
    named = {}
    for case, port in ports.items():
        lost = packets[(packets["dport"] == port) & (packets["verdict"] == "dropped")]
        drops = recording.drops.set_index("packet").loc[lost.index]
        named[case] = drops.loc[drops["tcp_state"] == "ESTABLISHED", "func"].astype(str).tolist()
    assert {case: len(where) for case, where in named.items()} == dict.fromkeys(ports, 1)
    assert {where for (where,) in named.values()} <= set(CASES["tcp_out_of_window"].where)
    resets = recording.packets.index[packets["dport"] == 7312][-1]
    assert packets.loc[resets, ["verdict", "where"]].tolist() == ["consumed", "tcp_validate_incoming"]


def test_tcp_tells_its_own_drops_also_where_the_compiler_left_the_function_that_drops() -> None:
    recording = Recording.load(TESTS / "recordings" / "tcp-5.10.parquet")
    events = recording.events
    inlined = {"tcp_rcv_established", "tcp_validate_incoming", "tcp_data_queue"}
    there = {
        address: ("tcp_drop" if symbol in inlined else symbol, offset)
        for address, (symbol, offset) in events.locations.items()
    }
    assert real_drops(dataclasses.replace(events, locations=there)).sum() >= real_drops(events).sum() > 0


def test_the_last_fin_of_a_connection_that_waits_was_used() -> None:
    packets = Recording.load(TESTS / "recordings" / "cases-6.12.parquet").packets
    last = packets[(packets["sport"] == 7314) & (packets["where"] == "tcp_v4_rcv") & (packets["length"] == 52)]
    assert last["verdict"].tolist() == ["consumed"]


@pytest.mark.parametrize("release", STOCK)
def test_every_function_of_the_default_set_is_probed_or_accounted_for(kernels: dict[str, Kernel], release: str) -> None:
    kernel = kernels[release]
    plan = probes.plan(Request.of({"filter": "udp"}), kernel, with_kprobes=True)
    default = {function.name for function in kernel.catalogue.functions.values() if function.default}
    probed = {probe.name for probe in plan.probes}
    shown = {f for t in probed & kernel.catalogue.tracepoints.keys() for f in kernel.catalogue.tracepoints[t].functions}
    named = {row["name"] for row in plan.refused}
    assert default - probed - shown - named == set()
    for name in (probe.target for probe in plan.of_kind("kprobe")):
        assert kernel.symbols.variants(name) or name in named, name


@pytest.mark.parametrize("release", ["5.10", "6.1", "6.12"])
def test_packets_are_born_above_the_place_where_they_are_cut(kernels: dict[str, Kernel], release: str) -> None:
    plan = probes.plan(Request.of({"filter": "udp"}), kernels[release], with_kprobes=True)
    born = {probe.name for probe in plan.of_kind("kprobe") if probe.cookie >> probes.KIND_AT & probes.BIRTH}
    assert {"__ip_local_out", "ip_output"} <= born
    assert not born & {"ip_finish_output2", "__dev_queue_xmit", "dev_hard_start_xmit", "ip_rcv"}


@pytest.mark.parametrize("release", STOCK)
def test_ends_are_seen_in_the_function_that_frees_and_not_at_the_allocator(
    kernels: dict[str, Kernel], release: str
) -> None:
    request = Request.of({"filter": "udp"})
    plan = probes.plan(request, kernels[release], with_kprobes=True)
    (freed, *told) = (probe.name for probe in plan.probes if probe.target == probes.RELEASES)
    assert (freed, told) == (probes.FREED, [probes.TCP_DROPS] if release == "5.10" else [])
    assert not {probe.target for probe in plan.probes} & set(probes.FREES)

    without = probes.plan(request, kernels[release], with_kprobes=False)
    assert {probe.target for probe in without.probes} >= set(probes.FREES)


@pytest.mark.parametrize("release", STOCK)
def test_the_filter_is_asked_in_the_order_in_which_a_packet_passes(kernels: dict[str, Kernel], release: str) -> None:
    """What one entry refused is refused at those behind it; the first ones, TC and the drivers' ask for themselves."""
    plan = probes.plan(Request.of({"filter": "udp"}), kernels[release], with_kprobes=True)
    entries = {probe.name: probe.cookie >> probes.RANK_AT & 15 for probe in plan.probes if probe.entry}
    again = {probe.name for probe in plan.probes if probe.entry and probe.cookie >> probes.KIND_AT & probes.AGAIN}
    assert entries["__ip_local_out"] < entries["ip_output"] < entries["__dev_queue_xmit"] < entries["tc_egress"]
    assert entries["tc_egress"] < entries["netif_rx_internal"] < entries["tc_ingress"]
    assert {"__ip_local_out", "ip_output", "__dev_queue_xmit", "netif_rx_internal"} <= again
    assert not again & {"tc_egress", "tc_ingress", "kfree_skb", "napi_gro_receive"}
    assert max(entries.values()) < 16
    assert "__netif_receive_skb_one_core" not in entries, "TC and the drivers' functions come before"

    every = probes.plan(Request.of({"filter": "udp", "match": "every"}), kernels[release], with_kprobes=True)
    attached = [probe for probe in every.of_kind("kprobe") if probe.cookie]
    assert all(probe.entry for probe in attached if probe.layer != "skb")
    assert not [probe.name for probe in every.probes if probe.cookie >> probes.KIND_AT & probes.AGAIN], (
        "each asks for itself"
    )


@pytest.mark.parametrize("release", ["6.1", "6.12", "7.2"])
def test_what_a_reader_gives_away_to_be_freed_is_delivered(kernels: dict[str, Kernel], release: str) -> None:
    plan = probes.plan(Request.of({"filter": "udp", "functions": "all"}), kernels[release], with_kprobes=True)
    assert {probe.name for probe in plan.of_kind("kprobe") if probe.role == "deliver"} == {probes.DEFERS}


@pytest.mark.parametrize("release", STOCK)
def test_where_kfree_skb_is_given_no_socket_functions_on_the_way_are(kernels: dict[str, Kernel], release: str) -> None:
    plan = probes.plan(Request.of({"filter": "udp"}), kernels[release], with_kprobes=True)
    given = {probe.name for probe in plan.of_kind("kprobe") if probe.cookie >> probes.SOCKET_AT & 15 == probes.SOCKET}
    assert {"tcp_v4_do_rcv", "tcp_rcv_established", "tcp_rcv_state_process"} <= given
    assert not given & {"tcp_v4_rcv", "ip_rcv", "__ip_queue_xmit"}
    assert ("SOCKET_UNTOLD" in plan.macros) == (release in ("5.10", "6.1"))
    (kfree_skb,) = (probe for probe in plan.probes if probe.name == "kfree_skb")
    assert (kfree_skb.cookie >> probes.SOCKET_AT & 15) == (probes.NO_ARGUMENT if release in ("5.10", "6.1") else 3)


@pytest.mark.parametrize("release", STOCK)
def test_symbols_of_each_kernel_resolve(kernels: dict[str, Kernel], release: str) -> None:
    symbols = kernels[release].symbols
    (address,) = symbols.addresses("ip_rcv")
    assert symbols.resolve([address + 1])[0] == ("ip_rcv", 1, "")
    (address,) = symbols.addresses("nft_do_chain_ipv4")
    assert symbols.resolve([address + 5])[0] == ("nft_do_chain_ipv4", 5, "nf_tables")


def test_functions_of_modules_are_known_with_and_without_their_types(kernels: dict[str, Kernel]) -> None:
    of_modules = {"veth_xmit", "nft_do_chain_ipv4", "nf_conntrack_in", "br_handle_frame_finish", "vxlan_xmit"}
    assert of_modules <= kernels["5.10"].untyped_functions
    assert not of_modules & kernels["5.10"].functions.keys()
    for release in TYPED:
        assert kernels[release].untyped_functions == set()
        assert of_modules <= kernels[release].function_modules.keys()
        assert kernels[release].functions["br_handle_frame_finish"] == 2


@pytest.mark.parametrize("release", TYPED)
def test_tracefs_names_no_reason_otherwise_than_btf(kernels: dict[str, Kernel], release: str) -> None:
    named = reasons.from_format(kernels[release].kfree_skb_format)
    assert len(named) > 50
    assert named.items() <= kernels[release].reasons.items()
