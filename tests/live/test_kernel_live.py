"""The running kernel, asked by us and by bpftool: the same answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from bpfpath_nb.kernel import Kernel, select, select_tracepoints
from bpfpath_nb.kernel.btf import VMLINUX, Btf

LACKING = "this machine lacks: "


@pytest.fixture(scope="module")
def dump() -> list[dict[str, object]]:
    """Every type of the running kernel as bpftool sees it, in order, the first being number 1."""
    if shutil.which("bpftool") is None:
        pytest.skip(LACKING + "bpftool (apt install bpftool)")
    done = subprocess.run(["bpftool", "-j", "btf", "dump", "file", VMLINUX], capture_output=True, check=True)
    types: list[dict[str, object]] = json.loads(done.stdout)["types"]
    return types


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf.load()


def test_as_many_types_and_functions_as_bpftool_counts(btf: Btf, dump: list[dict[str, object]]) -> None:
    assert btf.count == len(dump) + 1  # and void


def test_functions_that_take_a_packet_are_those_of_bpftool(btf: Btf, dump: list[dict[str, object]]) -> None:
    def points_at_packet(number: int) -> bool:
        pointer = False
        while number:
            type_ = dump[number - 1]
            if type_["kind"] == "PTR" and not pointer:
                pointer = True
            elif type_["kind"] in ("STRUCT", "FWD"):
                return pointer and type_["name"] == "sk_buff"
            elif type_["kind"] not in ("CONST", "VOLATILE", "RESTRICT", "TYPEDEF", "TYPE_TAG"):
                return False
            number = int(str(type_["type_id"]))
        return False

    known: dict[int, bool] = {}
    expected = set()
    for type_ in dump:
        if type_["kind"] == "FUNC":
            for parameter in dump[int(str(type_["type_id"])) - 1]["params"]:  # type: ignore[attr-defined]
                number = int(parameter["type_id"])
                if known.setdefault(number, points_at_packet(number) if number not in known else False):
                    expected.add(type_["name"])
    assert set(btf.functions_taking("sk_buff")) == expected
    assert len(expected) > 500


def test_members_are_where_bpftool_shows_them(btf: Btf, dump: list[dict[str, object]]) -> None:
    checked = 0
    for name in ("sk_buff", "net_device", "sock_common", "neighbour", "Qdisc", "net"):
        (struct,) = [t for t in dump if t["kind"] == "STRUCT" and t["name"] == name]
        assert btf.size(name) == struct["size"]
        for member in struct["members"]:  # type: ignore[attr-defined]
            if member["name"] != "(anon)":
                found = btf.member(name, member["name"])
                assert found.offset * 8 + found.shift == member["bits_offset"], (name, member)
                assert not member.get("bitfield_size") or found.bits == member["bitfield_size"]
                checked += 1
    assert checked > 200


def test_the_running_kernel_is_understood_and_known_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked, took = [], []
    for _ in range(2):
        kernel = Kernel.running()
        begin = time.perf_counter()
        asked.append((kernel.functions, kernel.tracepoints, kernel.macros, kernel.reasons))
        took.append(time.perf_counter() - begin)
    assert asked[0] == asked[1]
    assert len(list(tmp_path.rglob("kernel-*.json"))) == 1
    assert asked[0][2]["sk_buff__SIZE"] % 8 == 0
    with capsys.disabled():
        print(f"\n[types of this kernel: {took[0] * 1000:.0f} ms parsed, {took[1] * 1000:.0f} ms cached]")


def test_tracepoints_named_in_btf_are_those_of_tracefs() -> None:
    root = next(
        (p for p in (Path("/sys/kernel/tracing/events"), Path("/sys/kernel/debug/tracing/events")) if p.is_dir()), None
    )
    if root is None:
        pytest.skip(LACKING + "tracefs (mount -t tracefs none /sys/kernel/tracing)")
    events = {path.name for path in root.glob("*/*") if path.is_dir()}
    assert set(Kernel.running().tracepoints) <= events


def test_drop_reasons_are_those_that_tracefs_prints() -> None:
    kernel = Kernel.running()
    text = kernel.kfree_skb_format
    if "reason" not in text:
        pytest.skip(LACKING + "drop reasons in tracefs (a kernel since 5.17)")
    assert len(kernel.reasons) > 30
    for value, name in re.findall(r'\{ (\d+), "(\w+)" \}', text):
        assert name == "MAX" or kernel.reasons[int(value)] == name


def test_symbols_resolve_both_ways() -> None:
    symbols = Kernel.running().symbols
    assert not symbols.hidden
    for name in ("ip_rcv", "consume_skb", "__dev_queue_xmit"):
        (address,) = symbols.addresses(name)
        assert symbols.resolve([address + 3])[0] == (name, 3, "")
    known = {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines() if line.split()[1] in "tTwW"}
    assert set(symbols.names()) == known


def test_the_sets_answer_here() -> None:
    kernel = Kernel.running()
    for chosen, available in (
        (select("default", kernel.functions, kernel.catalogue), kernel.functions),
        (select_tracepoints("default", kernel.tracepoints, kernel.catalogue), kernel.tracepoints),
    ):
        assert len(chosen.probes) > 15
        assert chosen.probes.items() <= available.items()
