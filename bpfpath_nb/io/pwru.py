"""What pwru printed, as a recording.

pwru (https://github.com/cilium/pwru) prints an event a line: as a table, whose columns depend on its options and its
version, or with ``--output-json`` as JSON. Both are read here::

    pwru --output-json --output-meta --output-tuple --timestamp current 'udp port 53' > events.json
    pwru --output-meta --output-tuple --timestamp current 'udp port 53' > events.txt

Read are the tables of 1.0.5 (``netns=... len=...`` behind the function) and of 1.0.6 and later (a column each), and
JSON as of 1.0.6. What was seen: output of 1.0.5 (Debian's) and of 1.0.11 on Linux 6.12.

Times must be those of events: only ``--timestamp current`` prints them. pwru has no time of day for them, so they count
from when the machine was started, as if that had been the first of January 1970.

pwru knows a packet by the address of its sk_buff. Where `kfree_skbmem` was traced (it is, unless ``--filter-func`` left
it out) an address stands for a new packet afterwards, as the kernel gives it to the next one. From the tuple headers
are made that have the addresses, the protocol and the ports, and end there. With ``--output-caller`` a drop tells who
dropped. Where pwru was not asked for them, a namespace, an interface and a flow are missing, and lengths and marks 0.
"""

from __future__ import annotations

import io
import ipaddress
import re
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from bpfpath_nb.analysis.events import Events
from bpfpath_nb.errors import RecordingError
from bpfpath_nb.io.foreign import Foreign, events, packets_by_address, role_of
from bpfpath_nb.io.path import file_path
from bpfpath_nb.printable import printable
from bpfpath_nb.schema import LINKS

_TUPLE: Final = (
    r"\[?(?P<src>[0-9a-fA-F.:]*)\]?:(?P<sport>\d+)->\[?(?P<dst>[0-9a-fA-F.:]*)\]?:(?P<dport>\d+)"
    r"\((?P<proto>[a-z0-9]*)[^)]*\)"
)
_FUNC: Final = r"(?P<func>[^\s(]+)(?: ?\((?P<reason>[^)\s]*)\))?"
_OLD: Final = (
    r"^\s*(?P<skb>0x[0-9a-f]+)\s+(?P<cpu>\d+)\s+\[(?P<comm>.*)\((?P<pid>\d+)\)\]\s+" + _FUNC + r"(?:\s+(?P<time>\d+))?"
    r"(?:\s+netns=(?P<netns>\d+) mark=0x(?P<mark>[0-9a-f]+) iface=(?P<iface>\S+) proto=\S+ mtu=\d+ len=(?P<len>\d+))?"
    r"(?:\s+" + _TUPLE + r")?\s*$"
)
_SCHEMA: Final = {
    "skb": pa.string(), "cpu": pa.int64(), "process": pa.string(), "func": pa.string(), "caller_func": pa.string(),
    "time": pa.int64(), "netns": pa.int64(), "mark": pa.int64(), "iface": pa.string(), "len": pa.int64(),
    "tuple": pa.struct({"saddr": pa.string(), "daddr": pa.string(), "sport": pa.int64(), "dport": pa.int64(),
                        "proto": pa.int64()}),
}  # fmt: skip
_PROTOCOLS: Final = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58}
_COLUMNS: Final = (
    "skb", "cpu", "comm", "pid", "func", "reason", "caller", "time", "netns", "mark", "iface", "len", "src", "sport",
    "dst", "dport", "proto",
)  # fmt: skip
_HOW: Final = "Run pwru with `--timestamp current --output-meta --output-tuple`, best with `--output-json` too."


def read_pwru(source: str | Path) -> Events:
    """Read pwru's output: a file, or the text itself.

    Raises
    ------
    RecordingError
        It is no output of pwru's, or lacks the times.
    OSError
        There is no such file.
    """
    text = source if isinstance(source, str) and _is_text(source) else file_path(source).read_bytes()
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    try:
        table = _from_json(data) if data.lstrip()[:1] == b"{" else _from_text(data.decode("utf-8", "replace"))
        return _events(table)
    except RecordingError:
        raise
    except (pa.ArrowException, ValueError, OverflowError) as error:
        detail = printable(str(error), 200)
        raise RecordingError(f"This is no output of pwru that can be read ({detail}). {_HOW}") from error


def _is_text(source: str) -> bool:
    return "\n" in source or source.lstrip().startswith(("{", "SKB", "TIME", "0x"))


def _from_json(data: bytes) -> dict[str, Any]:
    data = data[: data.rfind(b"\n") + 1] or data  # a line that pwru was ended in is none
    options = pyarrow.json.ParseOptions(pa.schema(_SCHEMA.items()), unexpected_field_behavior="ignore")
    try:
        table = pyarrow.json.read_json(io.BytesIO(data), parse_options=options).combine_chunks()
    except pa.ArrowInvalid as error:
        if "/time" in str(error):
            what = "The times in this output of pwru are the time of day, in ms, when it printed"
            raise RecordingError(f"{what}. {_HOW}") from None
        raise
    column = {name: _plain(table[name]) for name in _SCHEMA}
    process = pc.extract_regex(column["process"], r"^(?P<comm>.*):(?P<pid>\d+)$")
    called = pc.extract_regex(column["func"], rf"^{_FUNC}$")
    whole = column["tuple"]
    inner = {name: pc.struct_field(whole, name) for name in ("saddr", "sport", "daddr", "dport", "proto")}
    return {
        **{name: column[name] for name in ("skb", "cpu", "time", "netns", "mark", "iface", "len")},
        "comm": pc.struct_field(process, "comm"), "pid": pc.cast(pc.struct_field(process, "pid"), pa.int64()),
        "func": pc.struct_field(called, "func"), "reason": pc.struct_field(called, "reason"),
        "caller": column["caller_func"],
        "src": _address(inner["saddr"]), "sport": inner["sport"], "dst": _address(inner["daddr"]),
        "dport": inner["dport"], "proto": inner["proto"],
    }  # fmt: skip


def _address(column: Any) -> Any:
    return pc.utf8_trim(column, "[]")


def _plain(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _from_text(text: str) -> dict[str, Any]:
    lines = text.splitlines()
    head = next((line for line in lines if re.match(r"\s*(TIME\s+)?SKB\s+CPU\s+PROCESS\s", line)), None)
    if head is None:
        raise ValueError("it has no line of JSON, and no head SKB CPU PROCESS")
    old = head.split()[:4] == ["SKB", "CPU", "PROCESS", "FUNC"] and head.startswith("  ")
    found = pc.extract_regex(pa.array(lines, pa.string()), _OLD if old else _new(head)).drop_null()
    if not len(found):
        raise ValueError("no line below its head is an event")
    names = {one.name for one in found.type}
    column = {
        name: pc.struct_field(found, name) if name in names else pa.nulls(len(found), pa.string()) for name in _COLUMNS
    }
    told = {name: pc.if_else(pc.equal(values, ""), None, values) for name, values in column.items()}
    for name in ("cpu", "pid", "time", "netns", "len", "sport", "dport"):
        told[name] = pc.cast(told[name], pa.int64())
    told["mark"] = _integers(told["mark"])
    kinds = pa.array(list(_PROTOCOLS.values()), pa.int64())
    told["proto"] = kinds.take(pc.index_in(told["proto"], pa.array(list(_PROTOCOLS), pa.string())))
    return told


def _new(head: str) -> str:
    """What a line looks like below such a head."""
    words = set(re.findall(r"[A-Z]+(?:/x)?|__sk_buff", head))
    return "".join(
        part
        for needs, part in (
            ("", r"^"),
            ("TIME", r"\S+\s+"),
            ("", r"(?P<skb>0x[0-9a-f]+)\s+(?P<cpu>\d+)\s+(?P<comm>\S.*?|):(?P<pid>\d+)\s+"),
            ("TIMESTAMP", r"(?P<time>\d+)\s+"),
            ("NETNS", r"(?P<netns>\d+)\s+"),
            ("MARK/x", r"(?P<mark>[0-9a-f]+)\s+(?P<iface>\S+)\s+0x[0-9a-f]+\s+\d+\s+(?P<len>\d+)\s+"),
            ("__sk_buff", r"\[\S*\]\s+"),
            ("NAME", r"(?:\S+\s+)?"),
            ("TUPLE", _TUPLE + r"\s+"),
            ("", _FUNC),
            ("CALLER", r"\s+(?P<caller>[^\s+]+)\S*"),
            ("", r"(?:\s.*)?$"),
        )
        if not needs or needs in words
    )


def _integers(column: Any) -> Any:
    """Hexadecimal numbers, of which few differ."""
    encoded = pc.dictionary_encode(column)
    values = [int(word, 16) for word in encoded.dictionary.to_pylist()]
    return pa.array(values, pa.int64()).take(encoded.indices)


def _events(told: dict[str, Any]) -> Events:
    time = told["time"]
    if not len(time) or time.null_count:
        raise RecordingError(f"This output of pwru has no times, so no gap would be known. {_HOW}")
    if time[0].as_py() == 0:
        raise RecordingError(f"The times in this output of pwru count from the event before. {_HOW}")
    if told["func"].null_count or told["skb"].null_count:
        raise ValueError("an event without a function or a packet")
    func, func_of = _codes(_symbols(told["func"]))
    reason, reason_of = _codes(told["reason"])
    caller, caller_of = _codes(_symbols(told["caller"]))
    address, address_of = _codes(told["skb"])
    skb = np.array([int(word, 16) for word in address], np.uint64)[address_of]
    times = _numbers(time, np.uint64)
    is_last = np.isin(func_of, [at for at, name in enumerate(func) if name == "kfree_skbmem"])
    drops = [at for at, name in enumerate(func) if role_of(name) == "drop"]
    caller_of = np.where(np.isin(func_of, drops), caller_of, -1)
    headers, headers_of, link = _headers(told)
    netns, ifindex, devices = _places(told)
    foreign = Foreign(
        times, packets_by_address(skb, times, is_last), func, func_of, ["kprobe"] * len(func), reason, reason_of,
        caller, caller_of, headers, headers_of, link,
        {
            "skb": skb, "netns": netns, "ifindex": ifindex, "cpu": _numbers(told["cpu"], np.uint16),
            "len": _numbers(told["len"], np.uint32), "mark": _numbers(told["mark"], np.uint32),
            "pid": _numbers(told["pid"], np.uint32),
        },
        is_end=np.isin(func_of, drops), is_last=is_last, processes=_processes(told), devices=devices,
    )  # fmt: skip
    return events(foreign, tool="pwru", says="imported from pwru, which does not count what it loses")


def _symbols(column: Any) -> Any:
    """Names of functions without the module (`[nf_tables]`) and the place in them (`+0x1a`)."""
    return pc.replace_substring_regex(column, r"(\+0x[0-9a-f]+|\[|\s).*$", "")


def _codes(column: Any) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The words that differ, and which each row has; -1 for none."""
    encoded = pc.dictionary_encode(column)
    return encoded.dictionary.to_pylist(), pc.fill_null(pc.cast(encoded.indices, pa.int64()), -1).to_numpy()


def _numbers(column: Any, dtype: type[np.unsignedinteger[Any]]) -> npt.NDArray[Any]:
    values = pc.fill_null(column, 0).to_numpy()
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= np.iinfo(dtype).max:
        raise ValueError("a number that is none of a packet's")
    return np.asarray(values.astype(dtype))


def _headers(told: dict[str, Any]) -> tuple[list[bytes], npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
    """Distinct headers, made from the tuples, and which each event has."""
    ends = [told[name] for name in ("src", "sport", "dst", "dport", "proto")]
    words = [pc.fill_null(pc.cast(column, pa.string()), "") for column in ends]
    distinct, which = _codes(pc.binary_join_element_wise(*words, " "))
    made = [_header(*word.split(" ")) for word in distinct]
    known = np.array([bool(data) for data in made] or [False])
    return made, np.where(known[which], which, -1), np.full(len(made), LINKS["ip"], np.uint16)


def _header(src: str, sport: str, dst: str, dport: str, proto: str) -> bytes:
    if not src or not dst:
        return b""
    source, target = ipaddress.ip_address(src).packed, ipaddress.ip_address(dst).packed
    ports = struct.pack(">HH", int(sport or 0) & 0xFFFF, int(dport or 0) & 0xFFFF) if proto in ("6", "17") else b""
    if len(source) == 4:
        return struct.pack(">BBHIBBH", 0x45, 0, 0, 0, 0, int(proto or 0) & 0xFF, 0) + source + target + ports
    return struct.pack(">IHBB", 6 << 28, 0, int(proto or 0) & 0xFF, 0) + source + target + ports


def _places(
    told: dict[str, Any],
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], list[tuple[int, int, int, str]]]:
    """Namespace and interface of each event, and the names of interfaces: `eth0:22`, `22(eth0)` or `22`."""
    words, which = _codes(told["iface"])
    found = [
        re.fullmatch(r"(?:(?P<name>.+):(?P<at>\d+))|(?:(?P<old>\d+)(?:\((?P<called>.+)\))?)", word) for word in words
    ]
    index = np.array([int(f["at"] or f["old"]) if f else 0 for f in found] + [0], np.int64)
    if index.max() >= 1 << 32:
        raise ValueError("a number that is none of an interface's")
    netns = _numbers(told["netns"], np.uint32)
    devices = []
    for inum, code in np.unique(np.stack([netns.astype(np.int64), which]), axis=1).T.tolist():
        name = (found[code]["name"] or found[code]["called"]) if code >= 0 and found[code] else None
        if name and index[code] and inum:
            devices.append((0, inum, int(index[code]), name))
    return netns, index[which].astype(np.uint32), devices


def _processes(told: dict[str, Any]) -> dict[int, str]:
    """The last name that is one, of each process; a path's last part."""
    pids, comms = told["pid"].to_pylist(), told["comm"].to_pylist()
    return {
        pid: comm.rpartition("/")[2]
        for pid, comm in dict.fromkeys(zip(pids, comms, strict=True))
        if pid and comm and comm != "<empty>"
    }
