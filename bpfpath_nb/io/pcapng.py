"""A recording as a pcapng file, for Wireshark, tshark and everything else that reads packets.

One packet is one Enhanced Packet Block: its first stored bytes, the time and place where it was first seen, and its
way through the kernel as the block's comment::

    packet 25 dropped: NETFILTER_DROP in nft_do_chain
    path 0ce1ed78996d  client > router  27 hops in 1854.337 us
    client: ip_send_skb 135.720 > __ip_local_out 13.021 > ip_output 15.423 > client eth0: nf_hook_slow ... > kfree_skb

Behind each function stands the gap to the next one in us. A place (namespace and interface) is named where it changes.
Wireshark shows comments below the packet and finds text in them (``frame.comment contains "nf_hook_slow"``).

Each namespace and interface in which a packet was first seen is an interface of the file, named as ``client:eth0``;
packets that were first seen before they had an interface (most that a local process sends) are of ``client:-``. An
interface has one link type, so a place that gives both frames and bare IP packets is two. A VLAN tag that the kernel
keeps beside the data is put back where it was on the wire. The length on the wire is told with each packet; of its
bytes there are at most `schema.HEADERS_BYTES` (and a tag).

The blocks are put together by Arrow from columns (fixed fields, data, comment), chunk by chunk; nothing is done packet
by packet. Format: draft-ietf-opsawg-pcapng, link types of the tcpdump group (1 Ethernet, 101 raw IP).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.hops import gaps
from bpfpath_nb.io.columns import content, fixed_bytes, join, microseconds, texts
from bpfpath_nb.io.replace import replacing
from bpfpath_nb.io.text import loss_lines
from bpfpath_nb.schema import HEADERS_BYTES, LINKS
from bpfpath_nb.version import __version__

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording

_TAG_BYTES: Final = 4
_SNAPLEN: Final = HEADERS_BYTES + _TAG_BYTES

_COMMENT, _FLAGS, _PACKET_ID = 1, 2, 5
_HARDWARE, _SYSTEM, _APPLICATION = 2, 3, 4
_NAME, _DESCRIPTION, _RESOLUTION, _FILTER = 2, 3, 9, 11

_COMMENT_LIMIT: Final = 60_000
"""Most bytes of a comment; the format has room for 65,535."""
_HOPS_LIMIT: Final = 1000
"""Most hops that a comment tells."""
_CHUNK_HOPS: Final = 1 << 20

_FIXED: Final = np.dtype([(name, "<u4") for name in ("kind", "size", "interface", "high", "low", "caplen", "len")])


def save_pcapng(recording: Recording, path: Path) -> Path:
    """Write a recording as pcapng; an existing file is replaced in one step."""
    path = path.expanduser()
    fact = _facts(recording)
    interface, places = _interfaces(recording, fact)
    with replacing(path) as file:
        file.write(_section(recording))
        for place in places:
            file.write(_interface_block(recording, *place))
        counts = np.cumsum(recording.events.counts)
        begin = 0
        while begin < len(counts):
            done = counts[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(counts, done + _CHUNK_HOPS, "right")))
            file.write(_packet_blocks(recording, slice(begin, end), interface[begin:end], fact[begin:end]))
            begin = end
    return path


# --- what stands before the packets


def _section(recording: Recording) -> bytes:
    start = recording.start
    told = [f"filter: {start.filter or 'every packet'}", *(f"lost: {line}" for line in loss_lines(recording))]
    options = (
        _option(_COMMENT, "\n".join(told))
        + _option(_HARDWARE, start.machine)
        + _option(_SYSTEM, f"Linux {start.release}")
        + _option(_APPLICATION, f"bpfpath_nb {__version__}")
    )
    return _block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + options + _option(0, ""))


def _interface_block(recording: Recording, netns: str, dev: str, inum: int, link: int) -> bytes:
    inside = f"network namespace {netns} (net:[{inum}])" if inum else "an unknown network namespace"
    described = f"interface {dev} in {inside}" if dev else f"{inside}, before the packet had an interface"
    options = (
        _option(_NAME, f"{netns or '?'}:{dev or '-'}")
        + _option(_DESCRIPTION, described)
        + _option(_RESOLUTION, b"\x09")
        + (_option(_FILTER, b"\0" + recording.start.filter.encode()) if recording.start.filter else b"")
    )
    return _block(1, struct.pack("<HHI", link, 0, _SNAPLEN) + options + _option(0, ""))


def _option(code: int, value: str | bytes) -> bytes:
    data = (value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value)[:_COMMENT_LIMIT]
    return struct.pack("<HH", code, len(data)) + data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def _interfaces(
    recording: Recording, fact: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.uint32], list[tuple[str, str, int, int]]]:
    """Of each packet its interface in the file, and these as (namespace, device, namespace's inode number, link)."""
    events = recording.events
    netns, devices = names.netns(events), names.devices(events)
    first = events.first
    table = pd.DataFrame(
        {
            "netns": netns.codes[first],
            "dev": devices.codes[first],
            "inum": events.hops["netns"][first],
            "link": _links(recording, fact),
        }
    )
    number = table.groupby(list(table.columns), sort=False).ngroup()  # in the order of their first packets
    places = [
        (netns.names[at] if at >= 0 else "", devices.names[dev] if dev >= 0 else "", inum, link)
        for at, dev, inum, link in table.drop_duplicates().to_numpy(np.int64).tolist()
    ]
    return number.to_numpy().astype(np.uint32), places


# --- the packets


def _facts(recording: Recording) -> npt.NDArray[np.intp]:
    """Of each packet the row of its first known snapshot, -1 where none is."""
    events = recording.events
    fact = np.full(len(events.first), -1, np.intp)
    known = np.flatnonzero(events.fact_of >= 0)[::-1]
    fact[events.packet_of[known]] = events.fact_of[known]  # the last one assigned is the first of the rows
    return fact


def _links(recording: Recording, fact: npt.NDArray[np.intp]) -> npt.NDArray[np.uint16]:
    """Of each packet what its stored bytes begin with; where there are none, as if it were an IP packet."""
    link = np.full(len(fact), LINKS["ip"], np.uint16)
    link[fact >= 0] = recording.events.facts["link"][fact[fact >= 0]]
    return link


def _packet_blocks(
    recording: Recording, packets: slice, interface: npt.NDArray[np.uint32], fact: npt.NDArray[np.intp]
) -> Any:
    """The blocks of some packets, one after the other, as one buffer."""
    events = recording.events
    facts = np.zeros(len(fact), events.facts.dtype)
    facts[fact >= 0] = events.facts[fact[fact >= 0]]
    data, caplen = _data(facts)
    comments = pc.cast(_comments(recording, packets), pa.binary())
    size = np.asarray(pc.binary_length(comments), np.uint32)
    fixed = np.zeros(len(fact), _FIXED)
    utc = events.utc[events.first[packets]].astype(np.uint64)
    fixed["kind"], fixed["interface"] = 6, interface
    fixed["high"], fixed["low"] = utc >> np.uint64(32), utc & np.uint64(0xFFFFFFFF)
    fixed["caplen"] = caplen
    whole = np.where(fact >= 0, facts["len"], events.hops["len"][events.first[packets]])
    fixed["len"] = np.maximum(whole + np.where(_tagged(facts), _TAG_BYTES, 0), caplen)
    options = np.zeros(len(fact), [("code", "<u2"), ("size", "<u2")])
    options["code"], options["size"] = _COMMENT, size
    tail = np.zeros(len(fact), [("flags", "<u2", 2), ("direction", "<u4"), ("id", "<u2", 2), ("number", "<u8"),
                                ("end", "<u4"), ("size", "<u4")])  # fmt: skip
    tail["flags"], tail["direction"] = (_FLAGS, 4), _directions(recording, packets)
    tail["id"], tail["number"] = (_PACKET_ID, 8), events.packets[packets]
    fixed["size"] = tail["size"] = (
        _FIXED.itemsize + caplen + -caplen % 4 + options.itemsize + size + -size % np.uint32(4) + tail.itemsize
    )
    parts = [
        fixed_bytes(fixed),
        data,
        _padding(caplen),
        fixed_bytes(options),
        comments,
        _padding(size),
        fixed_bytes(tail),
    ]
    return content(pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.binary())))


def _tagged(facts: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Where a tag that the kernel keeps beside the data can be put back: behind the addresses of a whole header."""
    is_frame = (facts["link"] == LINKS["ethernet"]) & (facts["caplen"] >= 14)
    return np.asarray((facts["vlan_tpid"] != 0) & is_frame)


def _data(facts: npt.NDArray[np.void]) -> tuple[Any, npt.NDArray[np.uint32]]:
    """The packets' bytes, tags put back, and how many there are of each."""
    tagged = _tagged(facts)
    room = np.zeros((len(facts), _SNAPLEN), np.uint8)
    room[:, :HEADERS_BYTES] = facts["headers"]
    moved = facts["headers"][tagged]
    room[tagged, 12 + _TAG_BYTES :] = moved[:, 12:]
    for at, name in ((12, "vlan_tpid"), (14, "vlan_tci")):
        room[tagged, at], room[tagged, at + 1] = facts[name][tagged] >> 8, facts[name][tagged] & 0xFF
    caplen = facts["caplen"].astype(np.uint32) + np.where(tagged, np.uint32(_TAG_BYTES), np.uint32(0))
    content = room[np.arange(_SNAPLEN) < caplen[:, None]]
    offsets = np.concatenate(([0], np.cumsum(caplen))).astype(np.int32)
    data = pa.BinaryArray.from_buffers(pa.binary(), len(facts), [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    return data, caplen


def _directions(recording: Recording, packets: slice) -> npt.NDArray[np.uint32]:
    """Of each packet the direction in which it was first seen: 1 inbound, 2 outbound, 0 not known."""
    functions = recording.start.functions
    into = [f.role == "receive" or f.probe == "tc_ingress" for f in functions]
    out = [f.role in ("send", "transmit") or f.probe == "tc_egress" for f in functions]
    code = np.array([1 if i else 2 if o else 0 for i, o in zip(into, out, strict=True)] or [0], np.uint32)
    return code[recording.events.hops["func"][recording.events.first[packets]]]


def _comments(recording: Recording, packets: slice) -> Any:
    """What became of each packet, and its path, as Arrow strings of at most _COMMENT_LIMIT bytes."""
    frame = recording.packets.iloc[packets]
    told = {name: texts(frame[name]) for name in ("verdict", "reason", "where", "path", "namespaces")}
    number, hops = (pc.cast(pa.array(values.to_numpy()), pa.string()) for values in (frame.index, frame["hops"]))
    total = microseconds(frame["total"].to_numpy().view(np.int64))
    dropped = (frame["verdict"] == "dropped").to_numpy()
    why = join(": ", pc.coalesce(told["reason"], "no reason told"), " in ", pc.coalesce(told["where"], "?"))
    lacking = np.where(frame["complete"].to_numpy(), "", "; it may lack hops, events were lost")
    head = join(
        "packet ", number, " ", told["verdict"], pc.if_else(dropped, why, ""), pa.array(lacking, pa.string()),
        "\npath ", told["path"], "  ", pc.coalesce(told["namespaces"], "namespace not known"), "  ", hops, " hops in ",
        total, " us\n",
    )  # fmt: skip
    return _bounded(join(head, _ways(recording, packets)))


def _ways(recording: Recording, packets: slice) -> Any:
    """Of each packet its hops, as `client: ip_send_skb 135.720 > client eth0: nf_hook_slow`."""
    events = recording.events
    begin = int(events.first[packets][0])
    rows = slice(begin, int(events.last[packets][-1]) + 1)
    func = texts(recording.df["func"].iloc[rows])
    netns, dev = recording.df["netns"].iloc[rows], recording.df["dev"].iloc[rows]
    place = np.stack([netns.cat.codes.to_numpy(np.int64), dev.cat.codes.to_numpy(np.int64)])
    hop, counts = events.hop[rows], events.counts[packets]
    moved = (np.diff(place, axis=1, prepend=-2) != 0).any(axis=0) | (hop == 0)
    where = pc.if_else(moved, join(pc.coalesce(texts(netns), "?"), pc.coalesce(join(" ", texts(dev)), ""), ": "), "")
    gap = gaps(events)[rows]
    is_last = np.zeros(len(hop), bool)
    is_last[events.last[packets] - begin] = True
    spent = pc.if_else(is_last, "", join(" ", microseconds(np.where(is_last, 0, gap))))
    words = join(where, func, spent)
    kept = hop < _HOPS_LIMIT
    ends = np.concatenate(([0], np.cumsum(np.minimum(counts, _HOPS_LIMIT)))).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(ends), words.filter(pa.array(kept)) if not kept.all() else words)
    more = pc.cast(pa.array(np.maximum(counts - _HOPS_LIMIT, 0)), pa.string())
    return join(
        pc.binary_join(lists, " > "), pc.if_else(pa.array(counts > _HOPS_LIMIT), join(" > ... ", more, " more"), "")
    )


def _bounded(comments: Any) -> Any:
    over = np.flatnonzero(np.asarray(pc.binary_length(comments)) > _COMMENT_LIMIT)
    if not len(over):
        return comments
    cut = [comments[at].as_py().encode()[: _COMMENT_LIMIT - 3].decode(errors="ignore") + "..." for at in over.tolist()]
    mask = np.zeros(len(comments), bool)
    mask[over] = True
    return pc.replace_with_mask(comments, pa.array(mask), pa.array(cut, pa.string()))


def _padding(size: npt.NDArray[np.uint32]) -> Any:
    return pa.array([b"", b"\0", b"\0\0", b"\0\0\0"], pa.binary()).take(pa.array(-size % np.uint32(4)))
