"""The layouts that C and Python share: written twice, compared here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bpfpath_nb import schema
from bpfpath_nb.errors import RequirementError
from bpfpath_nb.tracer import counters, followed, probes
from bpfpath_nb.tracer.unit import check_release

BPF = Path(__file__).parents[2] / "bpf"
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def members(file: str, struct: str) -> list[tuple[str, int, int]]:
    """(name, size, count) of each member of a struct of ours; none of them needs padding."""
    body = re.search(rf"^struct {struct} \{{\n(.*?)^\}}", (BPF / file).read_text(), re.S | re.M)
    assert body is not None
    text = re.sub(r"/\*.*?\*/", "", body[1], flags=re.S)
    found = re.findall(r"(u8|u16|u32|u64) (\w+)(?:\[(\d+)\])?;", text)
    return [(name, SIZES[kind], int(count or 1)) for kind, name, count in found]


def of_dtype(dtype: np.dtype) -> list[tuple[str, int, int]]:
    return [(name, dtype[name].base.itemsize, int(np.prod(dtype[name].shape, dtype=int))) for name in dtype.names or ()]


def offsets(layout: list[tuple[str, int, int]]) -> int:
    """The size; fails where a compiler would pad."""
    at = 0
    for name, size, count in layout:
        assert at % size == 0, f"{name} would be padded"
        at += size * count
    return at


def test_event() -> None:
    assert members("records.h", "event") == of_dtype(schema.EVENT_DTYPE)
    assert offsets(members("records.h", "event")) == schema.EVENT_DTYPE.itemsize == 64


def test_facts() -> None:
    assert members("records.h", "facts") == of_dtype(schema.FACTS_DTYPE)
    assert offsets(members("records.h", "facts")) == schema.FACTS_DTYPE.itemsize


@pytest.mark.parametrize("variant", [["network", "ip"], ["drops", "socket"]])
def test_path(variant: list[str]) -> None:
    """What all kernels have comes first, at the same places; the rest is one of two."""
    *both, first, second, third, fourth = members("skb_map.h", "path")
    rest = [member for member in (first, second, third, fourth) if member[0] in variant]
    size = offsets([*both, *rest])
    seen = followed.path_dtype(size)
    assert both == of_dtype(seen)
    assert seen.itemsize == size
    assert [seen.fields[name][1] for name, _, _ in both] == [offsets(both[:n]) for n in range(len(both))]
    assert [name for name, _, _ in rest] == variant


def test_state() -> None:
    assert [name for name, _, _ in members("records.h", "state")] == list(counters.STATE)


@pytest.mark.parametrize(
    ("file", "prefix", "python"),
    [
        ("records.h", "EVENT_", schema.EVENT_FLAGS),
        (
            "records.h",
            "KIND_",
            {
                name: getattr(probes, name.upper())
                for name in ("entry", "end", "neighbour", "expand", "device", "receive", "copy")
            },
        ),
        ("records.h", "", {"disarmed": counters.DISARMED, "armed": counters.ARMED, "closing": counters.CLOSING}),
        ("records.h", "FACTS_", schema.FACTS_KINDS),
        ("packet.h", "PACKET_", {"ethernet": schema.LINKS["ethernet"], "raw": schema.LINKS["ip"]}),
    ],
)
def test_constants(file: str, prefix: str, python: dict[str, int]) -> None:
    text = (BPF / file).read_text()
    for name, value in python.items():
        defined = re.search(rf"^#define {prefix}{name.upper()}\s+(\d+)", text, re.M)
        assert defined is not None, name
        assert int(defined[1]) == value, name


@pytest.mark.parametrize("release", ["4.19.0-27-amd64", "5.4.0", "5.7.19"])
def test_an_old_kernel_is_refused_with_a_way_out(release: str) -> None:
    with pytest.raises(RequirementError, match=r"5\.8.*ssh://"):
        check_release(release)


@pytest.mark.parametrize("release", ["5.10.0-33-amd64", "6.18.44", "7.2-rc1"])
def test_a_newer_kernel_passes(release: str) -> None:
    check_release(release)
