"""What retis collected, as a recording.

retis (https://github.com/retis-org/retis) writes its events as lines of JSON, whose sections have changed between its
versions. They are read with the `retis` package's own reader, which knows all of them, also files that `retis sort`
wrote. What was seen: events of 1.6, read by 1.7.

retis tells packets apart by itself (section `skb-tracking`: where the data was first seen, and when), and so do we by
that. Of the rest are used: `common` (time, CPU, task), `kernel` (function and probe), `packet` (the first bytes),
`netns`, `dev` and `skb-drop`. Events of user space, of returns, and those that belong to no packet are left out. The
section `startup` has the machine and the difference between its clocks, so times are those of the day.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis.events import Events
from bpfpath_nb.errors import RecordingError, RequirementError
from bpfpath_nb.io.foreign import Foreign, events
from bpfpath_nb.printable import printable
from bpfpath_nb.schema import LINKS

_PROBES: Final = {"raw_tracepoint": "tracepoint", "kprobe": "kprobe"}
_FREES: Final = frozenset({"kfree_skb", "consume_skb"})


def read_retis(path: Path) -> Events:
    """Read a file of retis' events; errors as of `Recording.from_retis`."""
    path = path.expanduser()
    with path.open("rb"):
        pass  # the reader's own error for this is not Python's
    try:
        import retis
    except ImportError:
        raise RequirementError(
            "Reading retis' events needs the package `retis`: install it with `pip install retis`, or all of it with "
            "`pip install 'bpfpath_nb[retis]'`."
        ) from None
    try:
        return _events(_dicts(retis.EventFile(str(path))))
    except RecordingError:
        raise
    except Exception as error:  # the reader's errors have no type of their own
        detail = printable(str(error).partition("Stack backtrace")[0].strip(), 200)
        raise RecordingError(
            f"{path} is no file of retis' events that can be read ({detail}). `retis collect -o` writes one."
        ) from error


def _dicts(file: Any) -> Iterator[dict[str, Any]]:
    if file.sorted():
        for series in file.series():
            yield from (event.to_dict() for event in series)
    else:
        yield from (event.to_dict() for event in file.events())


def _events(entries: Iterable[dict[str, Any]]) -> Events:
    rows: list[dict[str, Any]] = []
    startup: dict[str, Any] = {}
    for entry in entries:
        startup = entry.get("startup") or startup
        row = _row(entry)
        if row is not None:
            rows.append(row)
    if not rows:
        raise RecordingError(
            "These events of retis are of no packet. Collect with `-c skb,skb-tracking,skb-drop,ns,dev`."
        )
    table = pd.DataFrame(rows)
    function, func = _codes(table["func"] + "\n" + table["probe"])
    reason, reasons = _codes(table["reason"])
    data, headers = _codes(table["headers"])
    offset = startup.get("clock_monotonic_offset") or {}
    machine = startup.get("machine") or {}
    names, probes = zip(*(word.split("\n") for word in func), strict=True)
    numbers = {
        name: _numbers(table[name], dtype)
        for name, dtype in (
            ("skb", np.uint64), ("netns", np.uint32), ("ifindex", np.uint32), ("cpu", np.uint16), ("len", np.uint32),
            ("pid", np.uint32),
        )
    }  # fmt: skip
    time = _numbers(table["time"], np.uint64)
    frees = np.isin(function, [at for at, name in enumerate(names) if name in _FREES])
    foreign = Foreign(
        time, _packets(table, time), names, function, probes, reasons, reason, [], np.full(len(table), -1),
        [_bytes(text) for text in headers], data, np.full(len(headers), LINKS["ethernet"], np.uint16), numbers,
        is_end=frees, is_last=np.zeros(len(table), bool), processes=_processes(table), devices=_devices(table),
    )  # fmt: skip
    return events(
        foreign,
        tool=f"retis {startup.get('retis_version', '')}".strip(),
        says="imported from retis, which does not count what it loses",
        realtime=int(offset.get("sec", 0)) * 10**9 + int(offset.get("nsec", 0)),
        release=_known(machine.get("kernel_release")),
        machine=_known(machine.get("hardware_name")),
    )


def _row(entry: dict[str, Any]) -> dict[str, Any] | None:
    common, kernel, tracking = (entry.get(name) for name in ("common", "kernel", "skb-tracking"))
    if not common or not kernel or not tracking or kernel["probe_type"] not in _PROBES:
        return None
    task, packet, dev = (part or {} for part in (common.get("task"), entry.get("packet"), entry.get("dev")))
    return {
        "time": common["timestamp"],
        "cpu": common.get("smp_id") or 0,
        "pid": task.get("tgid") or 0,
        "comm": task.get("comm") or "",
        "func": kernel["symbol"].rpartition(":")[2],
        "probe": _PROBES[kernel["probe_type"]],
        "head": tracking["orig_head"],
        "born": tracking["timestamp"],
        "skb": tracking["skb"],
        "len": packet.get("len") or 0,
        "headers": packet.get("data") or None,
        "netns": (entry.get("netns") or {}).get("inum") or 0,
        "ifindex": dev.get("ifindex") or 0,
        "dev": dev.get("name") or "",
        "reason": (entry.get("skb-drop") or {}).get("drop_reason"),
    }


def _known(text: object) -> str:
    return "" if text in (None, "unknown") else str(text)


def _codes(column: pd.Series[Any]) -> tuple[npt.NDArray[np.int64], list[str]]:
    codes, words = pd.factorize(column.astype(object))
    return codes.astype(np.int64), [str(word) for word in words]


def _numbers(column: pd.Series[Any], dtype: type[np.unsignedinteger[Any]]) -> npt.NDArray[Any]:
    values = column.tolist()
    if not all(type(value) is int and 0 <= value <= np.iinfo(dtype).max for value in values):
        raise ValueError("a number that is none of a packet's")
    return np.array(values, dtype)


def _packets(table: pd.DataFrame, time: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """Number the packets in the order in which they were first seen."""
    order = np.argsort(time, kind="stable")
    number = np.empty(len(table), np.uint32)
    which = table.groupby(["head", "born"], sort=False).ngroup().to_numpy()
    number[order] = pd.factorize(which[order])[0] + 1
    return number


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"bytes of a packet that are not written as base64: {error}") from None


def _processes(table: pd.DataFrame) -> dict[int, str]:
    named = table.loc[(table["pid"] > 0) & (table["comm"] != ""), ["pid", "comm"]].drop_duplicates()
    return dict(named.itertuples(index=False, name=None))


def _devices(table: pd.DataFrame) -> list[tuple[int, int, int, str]]:
    """From when on each interface has its name."""
    named = table.loc[(table["netns"] > 0) & (table["ifindex"] > 0) & (table["dev"] != "")]
    first = named.drop_duplicates(["netns", "ifindex", "dev"])
    return list(first[["time", "netns", "ifindex", "dev"]].itertuples(index=False, name=None))
