"""Layout, drop reasons, catalogue and sets on recorded facts of real kernels, 5.10 to 7.2."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bpfpath_nb.errors import FunctionError, RequirementError
from bpfpath_nb.kernel import LAYERS, Kernel, facts, layout, reasons, select, select_tracepoints
from bpfpath_nb.kernel import catalogue as catalogues
from bpfpath_nb.kernel.reduced import ReducedTypes
from bpfpath_nb.kernel.sections import BtfError
from bpfpath_nb.kernel.sets import nearest, parse, read_list

FACTS = Path(__file__).parents[1] / "facts"
RELEASES = ("5.10", "6.1", "6.12", "6.18", "7.2")

# The functions of the paper (kp_funcs of bpfpath, 2020).
PAPER = (
    "ip_list_rcv", "nf_hook_slow", "nf_ip_checksum", "__skb_checksum_complete", "__skb_checksum", "nf_ct_get_tuple",
    "icmp_pkt_to_tuple", "ipt_do_table", "ip_route_input_noref", "ip_route_input_rcu", "ip_route_input_slow",
    "ip_local_deliver", "ipv4_confirm", "nf_confirm", "raw_local_deliver", "icmp_rcv", "icmp_echo", "skb_put",
    "consume_skb", "__icmp_send", "icmp_socket_deliver", "icmp_unreach", "icmp_redirect", "icmp_timestamp",
    "icmp_discard", "icmp_err", "kfree_skb",
)  # fmt: skip


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return {release: facts.load(FACTS / f"{release}.json.gz") for release in RELEASES}


@pytest.fixture(scope="module")
def here(kernels: dict[str, Kernel]) -> Kernel:
    return kernels["6.18"]


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize("release", RELEASES)
def test_everything_the_c_requires_is_on_every_kernel(kernels: dict[str, Kernel], release: str) -> None:
    macros = kernels[release].macros
    assert {need.macro for need in layout.NEEDS if need.required} <= macros.keys()
    assert all(re.fullmatch(r"\w+__\w+", name) and 0 <= value < 8192 for name, value in macros.items())
    assert ("sk_buff__vlan_present" in macros) == (release in {"5.10", "6.1"})
    assert ("bpf_nf_ctx__skb" in macros) == (release not in {"5.10", "6.1"})
    assert macros["neighbour__arp_queue_prev"] == macros["neighbour__arp_queue"] + 8


def test_offsets_are_those_that_bpftool_shows(kernels: dict[str, Kernel]) -> None:
    # Read off `bpftool btf dump file ... format raw`, for each kernel.
    expected = {"sk_buff__head": 192, "sk_buff__len": 112, "sk_buff__pkt_type": 128, "sk_buff__pkt_type_BITS": 3,
                "sk_buff__fclone_SHIFT": 2, "sk_buff__SIZE": 224, "net_device__ifindex": 224, "net__ns_inum": 176,
                "sock__skc_net": 48, "skb_shared_info__dataref": 32, "Qdisc__dev_queue": 64}  # fmt: skip
    assert {name: kernels["6.18"].macros[name] for name in expected} == expected


def test_a_kernel_that_lacks_a_required_member_is_named_with_it(here: Kernel) -> None:
    data = json.loads(json.dumps(facts.read(FACTS / "6.18.json.gz")["types"]))
    del data["structures"]["sk_buff"][1]["head"]
    with pytest.raises(RequirementError, match=r"6\.99.*sk_buff\.head"):
        layout.macros(ReducedTypes(data), "6.99")
    data["structures"]["sk_buff"][1]["head"] = [1536, 64, False, "char *", ""]
    assert layout.macros(ReducedTypes(data))["sk_buff__head"] == 192


# ---------------------------------------------------------------- drop reasons


def test_drop_reasons_are_the_kernels_own(kernels: dict[str, Kernel]) -> None:
    assert kernels["5.10"].reasons == {}
    assert {r: {n: v for v, n in kernels[r].reasons.items()}["NO_SOCKET"] for r in RELEASES[1:]} == {
        "6.1": 2, "6.12": 3, "6.18": 3, "7.2": 3,
    }  # fmt: skip
    # One value, three meanings, and not even the first ones are the same: why a table of ours would be wrong.
    assert [kernels[r].reasons[20] for r in ("6.1", "6.12", "6.18")] == ["SOCKET_BACKLOG", "TCP_AUTH_HDR", "PROTO_MEM"]
    for release in RELEASES[1:]:
        names = list(kernels[release].reasons.values())
        assert not {"MAX", "NOT_DROPPED_YET", "CONSUMED"} & set(names)
        assert not any("DROP_REASON" in name for name in names)
        assert len(set(names)) == len(names)


def test_subsystems_number_their_reasons_in_the_upper_bits(kernels: dict[str, Kernel]) -> None:
    assert reasons.subsystems(kernels["6.1"].btf) == {}
    assert reasons.subsystems(kernels["7.2"].btf) == {1: "MAC80211_UNUSABLE", 2: "OPENVSWITCH", 3: "QDISC"}
    known = kernels["7.2"].reasons
    assert known[2 << 16 | 1] == "OVS_LAST_ACTION"
    assert known[3 << 16 | 2] == "QDISC_OVERLIMIT"
    assert known[1 << 16 | 2] == "MAC80211_U_REPLAY"
    assert not [name for name in known.values() if name.endswith("_MAX") or "CONTINUE" in name]


def test_tracefs_and_btf_agree_on_drop_reasons(here: Kernel) -> None:
    assert len(here.reasons) > 100
    assert reasons.from_format(here.kfree_skb_format) == here.reasons


@pytest.mark.parametrize("text", ["", "print fmt: nothing", "__print_symbolic(REC->reason", '{ 2, "NOT_SPECIFIED" }'])
def test_a_format_without_a_table_has_no_reasons(text: str) -> None:
    assert reasons.from_format(text) == {}


# ---------------------------------------------------------------- functions, tracepoints, symbols


def test_functions_and_where_their_packet_is(here: Kernel) -> None:
    assert len(here.functions) > 2000
    assert {n: here.functions[n] for n in ("ip_rcv", "ip_output", "tcp_v4_do_rcv", "sk_skb_reason_drop")} == {
        "ip_rcv": 0, "ip_output": 2, "tcp_v4_do_rcv": 1, "sk_skb_reason_drop": 1,
    }  # fmt: skip


def test_functions_of_modules_belong_to_them(kernels: dict[str, Kernel]) -> None:
    debian = kernels["6.1"]
    assert debian.functions["nf_conntrack_in"] == 0
    assert debian.function_modules["nf_conntrack_in"] == "nf_conntrack"
    assert "ip_rcv" not in debian.function_modules


def test_tracepoint_arguments_follow_the_kernel(kernels: dict[str, Kernel]) -> None:
    assert kernels["5.10"].tracepoint_arguments("kfree_skb") == ["struct sk_buff *", "void *"]
    assert kernels["6.18"].tracepoint_arguments("kfree_skb") == [
        "struct sk_buff *", "void *", "enum skb_drop_reason", "struct sock *",
    ]  # fmt: skip
    assert kernels["7.2"].tracepoint_arguments("ovs_dp_upcall")[1] == "struct sk_buff *"
    assert {r: kernels[r].tracepoints["neigh_event_send_done"] for r in RELEASES} == dict.fromkeys(RELEASES, 0)
    assert kernels["6.18"].tracepoints["qdisc_dequeue"] == 3


def test_recorded_symbols_resolve(here: Kernel) -> None:
    (address,) = here.symbols.addresses("ip_rcv")
    assert here.symbols.resolve([address + 1])[0] == ("ip_rcv", 1, "")


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{}", b'{"format":1}', b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(RequirementError):
            facts.read(tmp_path / "x.json")
    kernel = Kernel.from_facts({"types": {"structures": {"sk_buff": [8, {"head": ["a", 1]}]}}})
    with pytest.raises(BtfError, match="damaged"):
        kernel.btf.size("sk_buff")


# ---------------------------------------------------------------- catalogue


def test_every_default_function_takes_a_packet_on_some_kernel(kernels: dict[str, Kernel]) -> None:
    # Functions of modules whose BTF is not in the facts; they were checked against the modules of Debian's 6.1 and 7.2.
    in_modules = {"fq_codel_enqueue"}
    known = set().union(*(kernel.functions for kernel in kernels.values())) | in_modules
    default = {f.name for f in catalogues.load().functions.values() if f.default}
    assert default - known == set()
    assert 90 <= len(default) <= 130


def test_the_papers_functions_are_among_the_default_ones(kernels: dict[str, Kernel]) -> None:
    catalogue = catalogues.load()
    default = {f.name for f in catalogue.functions.values() if f.default}
    for name in PAPER:
        assert name in default or default & set(catalogue.stand_ins(name)), name


def test_every_layer_has_functions_of_the_default_set() -> None:
    used = {f.layer for f in catalogues.load().functions.values() if f.default}
    assert used == set(LAYERS)


def test_the_catalogue_is_consistent() -> None:
    catalogue = catalogues.load()
    for entry in [*catalogue.functions.values(), *catalogue.tracepoints.values()]:
        assert entry.layer in LAYERS
        assert 5 <= len(entry.does) <= 90, entry.name
        assert entry.entry in {"", "receive", "send", "drop"}
        assert entry.final or not entry.drop, entry.name
    for function in catalogue.functions.values():
        assert function.name not in function.aliases
    assert {t.name for t in catalogue.tracepoints.values() if t.freed} == {"net_dev_xmit"}
    assert {t.name for t in catalogue.tracepoints.values() if t.drop} == {"kfree_skb"}


@pytest.mark.parametrize("release", RELEASES)
def test_every_tracepoint_that_passes_a_packet_is_described(kernels: dict[str, Kernel], release: str) -> None:
    catalogue = catalogues.load()
    assert set(kernels[release].tracepoints) - set(catalogue.tracepoints) == set()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("ip_rcv", "ip"), ("sk_skb_reason_drop", "skb"), ("__udp4_lib_rcv", "transport"), ("nft_meta_get_eval",
        "netfilter"), ("tcp_some_new_function", "transport"), ("br_mdb_something", "bridge"), ("fib6_lookup", "route"),
        ("xt_match", "netfilter"), ("neigh_update", "neigh"), ("vxlan_new", "driver"), ("xfrm_new", "xfrm"),
        ("sch_new_enqueue", "qdisc"), ("tcf_new", "tc"), ("unix_new", "socket"), ("skb_new", "skb"), ("zzz", "skb"),
        ("ip6_new_thing", "ip"), ("mlx5e_xmit", "driver"),
    ],
)  # fmt: skip
def test_any_function_has_a_layer(name: str, layer: str) -> None:
    assert catalogues.load().layer_of(name) == layer


def test_a_wrong_catalogue_is_refused(tmp_path: Path) -> None:
    text = catalogues.PATH.read_text()
    for wrong in (text.replace('layer = "tc"', 'layer = "tea"', 1), text.replace("does =", "dose =", 1)):
        (tmp_path / "c.toml").write_text(wrong)
        with pytest.raises(ValueError, match=r"c\.toml"):
            catalogues.load(tmp_path / "c.toml")


# ---------------------------------------------------------------- sets


@pytest.mark.parametrize("release", RELEASES)
def test_the_default_set_answers_on_every_kernel(kernels: dict[str, Kernel], release: str) -> None:
    kernel = kernels[release]
    chosen = select("default", kernel.functions, kernel.catalogue)
    default = {f.name for f in kernel.catalogue.functions.values() if f.default}
    assert len(chosen.probes) >= 70
    assert all(kernel.functions[name] == position for name, position in chosen.probes.items())
    assert default == (chosen.probes.keys() & default) | chosen.stand_ins.keys() | set(chosen.missing)
    assert chosen.final <= chosen.probes.keys()
    assert "consume_skb" in chosen.final


def test_drops_are_one_function_by_three_names(kernels: dict[str, Kernel]) -> None:
    found = {r: set(select("drops", kernels[r].functions, kernels[r].catalogue).probes) for r in RELEASES}
    assert found == {
        "5.10": {"kfree_skb", "kfree_skb_list"},
        "6.1": {"kfree_skb_reason", "kfree_skb_list_reason"},
        "6.12": {"sk_skb_reason_drop", "kfree_skb_list_reason"},
        "6.18": {"sk_skb_reason_drop", "kfree_skb_list_reason"},
        "7.2": {"sk_skb_reason_drop", "kfree_skb_list_reason"},
    }


@pytest.mark.parametrize("wanted", ["kfree_skb", "kfree_skb_reason", "sk_skb_reason_drop"])
def test_a_name_of_another_kernel_is_understood(here: Kernel, wanted: str) -> None:
    chosen = select([wanted], here.functions, here.catalogue)
    assert chosen.probes == {"sk_skb_reason_drop": 1}
    assert chosen.stand_ins == ({} if wanted == "sk_skb_reason_drop" else {wanted: "sk_skb_reason_drop"})


def test_all_leaves_out_tracing_itself_and_netlink(here: Kernel) -> None:
    probes = select("all", here.functions, here.catalogue).probes
    assert len(probes) > 1300
    assert {"ip_rcv", "nft_do_chain_inet", "neigh_xmit"} <= probes.keys()
    assert not {"rtnl_fill_ifinfo", "bpf_skb_load_bytes", "devlink_nl_info_get_doit"} & probes.keys()
    assert not [name for name in probes if name.startswith(("__bpf_trace_", "trace_event_", "__probestub_"))]


@pytest.mark.parametrize("spec", ["icmp_.*", "/icmp_.*/", "icmp_*", "icmp_(rcv|echo)"])
def test_patterns_match_whole_names(here: Kernel, spec: str) -> None:
    probes = select(spec, here.functions, here.catalogue).probes
    assert {"icmp_rcv", "icmp_echo"} <= probes.keys()
    assert all(name.startswith("icmp_") for name in probes)


def test_a_list_may_be_text_with_commas(here: Kernel) -> None:
    assert select("ip_rcv, icmp_rcv", here.functions, here.catalogue).probes == {"ip_rcv": 0, "icmp_rcv": 0}


def test_the_papers_file_is_read_with_its_ends(here: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "kp_funcs.txt"
    path.write_text("".join(f"{name} {int(name in {'consume_skb', 'kfree_skb'})}\n" for name in PAPER))
    chosen = select(path, here.functions, here.catalogue)
    assert chosen.final == {"consume_skb", "sk_skb_reason_drop"}
    assert chosen.stand_ins["ip_list_rcv"] == "ip_rcv_core"
    assert chosen.missing == ()
    assert len(chosen.probes) == 25  # of 27 names two pairs are one function here
    assert select(str(path), here.functions, here.catalogue) == chosen


def test_a_file_with_sections_and_comments_is_read(tmp_path: Path) -> None:
    path = tmp_path / "kprobes.list"
    path.write_text(":arg1:\nip_rcv\n# icmp_send\n\nudp_rcv  # also\n:final:\nconsume_skb\n")
    request = read_list(path)
    assert request.names == ("ip_rcv", "udp_rcv", "consume_skb")
    assert request.final == {"consume_skb"}


def test_a_wrong_file_is_told_by_its_line_and_nothing_of_its_text(tmp_path: Path) -> None:
    path = tmp_path / "shadow.txt"
    path.write_text("ip_rcv\nroot:$6$secret:19000\n")
    with pytest.raises(FunctionError, match="Line 2") as caught:
        read_list(path)
    assert "secret" not in str(caught.value)
    with pytest.raises(FunctionError, match="not opened here"):
        parse(path, files=False)
    with pytest.raises(FunctionError, match="No such file"):
        read_list(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("wrong", "right"), [("ip_rvc", "ip_rcv"), ("sk_sbk_reason_drop", "sk_skb_reason_drop"), ("udp_recv", "udp_rcv")]
)
def test_an_unknown_name_is_told_with_the_nearest(here: Kernel, wrong: str, right: str) -> None:
    with pytest.raises(FunctionError, match=rf"'{wrong}' is not known; the nearest are .*\b{right}\b"):
        select([wrong], here.functions, here.catalogue)
    assert right in nearest(wrong, here.functions)


def test_a_function_without_a_packet_is_told_apart_from_an_unknown_one(here: Kernel) -> None:
    with pytest.raises(FunctionError, match="takes no packet"):
        select(["tcp_sendmsg"], here.functions, here.catalogue, symbols={"tcp_sendmsg"})


@pytest.mark.parametrize(
    "spec", [[], "", "  ", ["ip rcv"], ["$(reboot)"], "ip_(", "nothing_at_all_.*", [7], "a" * 3000 + "+"]
)
def test_requests_that_make_no_sense_are_refused(here: Kernel, spec: Any) -> None:
    with pytest.raises(FunctionError):
        select(spec, here.functions, here.catalogue)
    with pytest.raises(FunctionError):
        select_tracepoints(spec, here.tracepoints, here.catalogue)


def test_a_known_function_that_this_kernel_lacks_is_no_error_beside_others(here: Kernel) -> None:
    chosen = select(["ip_rcv", "fq_codel_enqueue"], here.functions, here.catalogue)
    assert (chosen.probes, chosen.missing) == ({"ip_rcv": 0}, ("fq_codel_enqueue",))
    with pytest.raises(FunctionError, match="fq_codel_enqueue: not on this kernel"):
        select(["fq_codel_enqueue"], here.functions, here.catalogue)


# ---------------------------------------------------------------- sets, where there are only tracepoints


def test_sets_of_tracepoints(here: Kernel) -> None:
    everything = select_tracepoints("default", here.tracepoints, here.catalogue)
    assert everything.probes == here.tracepoints == select_tracepoints("all", here.tracepoints, here.catalogue).probes
    assert everything.final == {"consume_skb", "kfree_skb"}
    assert select_tracepoints("drops", here.tracepoints, here.catalogue).probes == {"kfree_skb": 0}


def test_functions_stand_for_the_tracepoints_that_show_them(here: Kernel) -> None:
    chosen = select_tracepoints(
        ["kfree_skb_reason", "__dev_queue_xmit", "qdisc_dequeue", "ip_rcv"],
        here.tracepoints,
        here.catalogue,
        known=here.functions,
    )
    assert chosen.probes == {"kfree_skb": 0, "net_dev_queue": 0, "qdisc_dequeue": 3}
    assert chosen.stand_ins == {"kfree_skb_reason": "kfree_skb", "__dev_queue_xmit": "net_dev_queue"}
    assert chosen.missing == ("ip_rcv",)
    with pytest.raises(FunctionError, match="not attachable on this kernel"):
        select_tracepoints(["ip_rcv"], here.tracepoints, here.catalogue)
    with pytest.raises(FunctionError, match="not known"):
        select_tracepoints(["no_such_thing"], here.tracepoints, here.catalogue)


def test_a_pattern_finds_tracepoints_by_their_name_or_their_function(here: Kernel) -> None:
    found = select_tracepoints("netif_rx.*", here.tracepoints, here.catalogue).probes
    assert found == {"netif_rx": 0, "netif_rx_entry": 0}
    assert select_tracepoints("__icmp_s.*", here.tracepoints, here.catalogue).probes == {"icmp_send": 0}
