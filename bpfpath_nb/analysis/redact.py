"""A recording that can be shown to strangers: the same paths and times, other names and addresses.

Everything that names a place, a program or a person's machine is replaced or left out, and what stays is listed, so
that what nobody thought of goes too:

stays        kernel functions, their layers and addresses' names, times, CPUs, process numbers, lengths, marks, drop
             reasons, TCP states, ports, VLAN tags, protocol fields of the headers up to the transport header, counters
replaced     IP and Ethernet addresses (`pseudonyms`), names of namespaces, interfaces and processes, the host, and in
             the filter the addresses; addresses of the kernel, which would tell how its memory is laid out
left out     all bytes behind the headers, options of IPv4, IPv6 and TCP, what errors of ICMP quote, checksums (zero),
             a filter that has more than protocols, ports and addresses, keys of the start record that this version
             does not know

`host`, our word for the first namespace, and `lo` keep their names.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.headers import KINDS, Bools, Located, Offsets, extension_headers, located
from bpfpath_nb.analysis.pseudonyms import Pseudonyms
from bpfpath_nb.schema import EVENT_FLAGS, LINKS, START_RECORD
from bpfpath_nb.start import StartRecord

_KEPT_NAMES: Final = frozenset({"host", "lo"})
_TRANSPORT: Final = {1: 8, 6: 20, 17: 8, 33: 16, 58: 8, 132: 12, 136: 8}
"""How much of each transport header stays: its fixed part."""
_CHECKSUM: Final = {1: 2, 6: 16, 17: 6, 33: 6, 58: 2, 132: 8, 136: 6}
"""Where its checksum stands; all have 2 bytes but SCTP's 4."""
_ICMP_REST: Final = {1: (0, 3, 4, 8, 11, 12, 13, 14), 58: (1, 2, 3, 4, 128, 129, 133, 134, 135, 136)}
"""Types of ICMP whose bytes 4 to 7 are no address: numbers of an echo, an MTU, a pointer, flags."""
_NO_OPTION: Final = 1
"""IPv4's option that does nothing."""

_REDACTED: Final = "(redacted)"
_WORDS: Final = frozenset(
    re.findall(
        r"\S+",
        """and or not src dst host net port portrange proto ether ip ip6 arp rarp tcp udp sctp icmp icmp6 igmp esp ah
        vlan mpls less greater gateway broadcast multicast inbound outbound tcp[tcpflags] tcp[13] icmp[icmptype]
        icmp6[icmp6type] tcp-syn tcp-ack tcp-fin tcp-rst tcp-push tcp-urg tcp-ece tcp-cwr icmp-echo icmp-echoreply
        icmp-unreach ( ) ! && || & | = == != < > <= >=""",
    )
)
"""Words of a filter that name nothing of a network's own."""
_NUMBERED: Final = frozenset({"port", "portrange", "proto", "vlan", "mpls", "less", "greater"})
_COMPARED: Final = frozenset({"&", "|", "=", "==", "!=", "<", ">", "<=", ">="})
"""Words after which a number, or a small number, is no part of an address."""


def redact(events: Events, key: bytes) -> Events:
    """The same recording with other names and addresses; the same key gives the same ones."""
    other = Pseudonyms(key)
    names = {
        place: tuple((since, _name(other, "dev" if place[1] else "netns", name)) for since, name in called)
        for place, called in events.devices.items()
    }
    to = _kernel_addresses(events)
    hops = dict(events.hops)
    merged = hops["flags"] & EVENT_FLAGS["merged"] != 0  # there `location` is a packet's number
    hops["location"] = np.where(merged, hops["location"], to(hops["location"]))
    hops["skb"] = _ranked(hops["skb"], _HEAP)
    returns = dict(events.returns) | {"location": to(events.returns["location"])}
    stacks = events.stacks.copy()
    stacks["frames"] = to(stacks["frames"])
    for values in (hops["skb"], hops["location"], returns["location"], stacks):
        values.flags.writeable = False
    end = events.end and {name: events.end[name] for name in ("reason", "time") if name in events.end}
    return replace(
        events,
        start=_start(events, other),
        hops=hops,
        facts=_facts(events.facts, other),
        returns=returns,
        stacks=stacks,
        processes={pid: other.name("process", comm) for pid, comm in events.processes.items()},
        devices=names,
        locations=_locations(events, to),
        end=end,
    )


def _name(other: Pseudonyms, kind: str, name: str) -> str:
    return name if name in _KEPT_NAMES else other.name(kind, name)


# --- addresses of the kernel

_HEAP: Final = 0xFFFF888000000000
_TEXT: Final = 0xFFFFFFFF81000000


def _ranked(addresses: npt.NDArray[np.uint64], base: int) -> npt.NDArray[np.uint64]:
    """Addresses in the same order, with nothing of where they were; 0 stays 0."""
    distinct, which = np.unique(addresses, return_inverse=True)
    moved = np.uint64(base) + np.uint64(0x100) * np.arange(len(distinct), dtype=np.uint64)
    moved[distinct == 0] = 0
    return np.asarray(moved[which.reshape(-1)].reshape(addresses.shape))


def _kernel_addresses(events: Events) -> Any:
    """A function that moves addresses of places in the kernel, and stack pointers, alike wherever they stand."""
    everywhere = [
        events.hops["location"],
        events.returns["location"],
        events.stacks["frames"].reshape(-1),
        np.array(list(events.locations), np.uint64),
    ]
    known = np.unique(np.concatenate([values.astype(np.uint64) for values in everywhere]))
    moved = _ranked(known, _TEXT)

    def to(addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return moved[np.searchsorted(known, addresses)] if len(addresses) else addresses.copy()

    return to


def _locations(events: Events, to: Any) -> dict[int, tuple[str, int]]:
    """The names of places in the kernel, under their new addresses.

    A place without a name, such as the code of a BPF program, is called by its address (the tracer does, as kallsyms
    knows none), and that tells where modules lie as much as the address itself.
    """
    moved = to(np.array(list(events.locations), np.uint64)).tolist()
    return {
        address: (f"{address:#x}" if symbol.startswith("0x") else symbol, offset)
        for address, (symbol, offset) in zip(moved, events.locations.values(), strict=True)
    }


# --- packets


def _facts(facts: npt.NDArray[np.void], other: Pseudonyms) -> npt.NDArray[np.void]:
    found = located(facts)
    kind = found.parsed["kind"]
    room = facts["headers"].copy()
    end = np.where(kind == KINDS["unknown"], 0, found.network)
    frame = (facts["link"] == LINKS["ethernet"]) & (facts["caplen"] >= 14)
    zero = np.zeros(len(facts), np.intp)
    _replace(room, frame, zero, 6, other)
    _replace(room, frame, zero + 6, 6, other)

    arp = kind == KINDS["arp"]
    for offset, size in ((8, 6), (14, 4), (18, 6), (24, 4)):
        _replace(room, arp, found.network + offset, size, other)
    end = np.where(arp, found.network + 28, end)

    four, six = kind == KINDS["ip"], kind == KINDS["ip6"]
    for rows, size, src, dst in ((four, 4, 12, 16), (six, 16, 8, 24)):
        _replace(room, rows, found.network + src, size, other)
        _replace(room, rows, found.network + dst, size, other)
    _fill(room, four, found.network + 10, found.network + 12, 0)
    _fill(room, four, found.network + 20, found.transport, _NO_OPTION)
    for header in extension_headers(found.matrix, six, found.matrix.u8(found.network + 6), found.network + 40):
        # What is left of them are their lengths; a row of zeros is padding to whoever reads options.
        _fill(room, header.options, header.offset + 2, header.offset + header.size, 0)
        authenticates = header.rows & ~header.options & (header.size != 8)
        _fill(room, authenticates, header.offset + 2, header.offset + header.size, 0)
    end = np.where(four | six, found.transport + _transport(room, found, four | six), end)

    redacted = facts.copy()
    redacted["caplen"] = np.minimum(facts["caplen"], end.clip(min=0))
    room[np.arange(room.shape[1]) >= redacted["caplen"][:, None]] = 0
    redacted["headers"] = room
    redacted.flags.writeable = False
    return redacted


def _transport(room: npt.NDArray[np.uint8], found: Located, rows: Bools) -> npt.NDArray[np.intp]:
    """How much of each packet's transport header stays; its checksum, and what may be an address, is zero."""
    rows = rows & (found.parsed["fragment"] == 0)
    proto, offset = found.parsed["proto"], found.transport
    size = np.zeros(len(room), np.intp)
    for number, kept in _TRANSPORT.items():
        of_this = rows & (proto == number)
        size[of_this] = kept
        at = offset + _CHECKSUM[number]
        _fill(room, of_this, at, at + (4 if number == 132 else 2), 0)
        if number in _ICMP_REST:
            other = of_this & ~np.isin(found.matrix.u8(offset), _ICMP_REST[number])
            _fill(room, other, offset + 4, offset + 8, 0)
    return size


def _replace(room: npt.NDArray[np.uint8], rows: Bools, offset: Offsets, size: int, other: Pseudonyms) -> None:
    """Replace the address that stands there in the chosen rows, which all have it."""
    chosen = np.flatnonzero(rows)
    at = chosen[:, None], offset[chosen][:, None] + np.arange(size)
    room[at] = other.addresses(room[at])


def _fill(room: npt.NDArray[np.uint8], rows: Bools, begin: Offsets, end: Offsets, value: int) -> None:
    chosen = np.flatnonzero(rows)
    column = np.arange(room.shape[1])
    inside = (column >= begin[chosen][:, None]) & (column < end[chosen][:, None])
    room[chosen] = np.where(inside, np.uint8(value), room[chosen])


# --- the start record


def _start(events: Events, other: Pseudonyms) -> StartRecord:
    raw = {key: value for key, value in events.start.raw.items() if key in START_RECORD and key != "error"}
    raw["host"] = other.name("host", events.start.host) if events.start.host else ""
    raw["filter"] = redacted_filter(events.start.filter, other)
    raw["redacted"] = True
    for measured in ("timing", "cost"):
        if isinstance(raw.get(measured), dict):
            raw[measured] = {k: v for k, v in raw[measured].items() if isinstance(v, (int, float))}
    secret = _words_of(events)
    raw["refused"] = [
        {"name": _without(r.name, secret), "why": _without(r.why, secret), "instead": _without(r.instead, secret)}
        for r in events.start.refused
    ]
    raw["functions"] = [
        {"name": f.name, "layer": f.layer, "probe": f.probe, "target": _without(f.target, secret), "role": f.role}
        for f in events.start.functions
    ]
    options = events.start.options
    kept: dict[str, Any] = {
        name: value for name, value in options.items() if isinstance(value, (bool, int, float)) or value is None
    }
    kept |= {name: options[name] for name in ("functions", "final", "match") if name in options}
    kept["filter"] = raw["filter"]
    for name, kind in (("namespaces", "netns"), ("interfaces", "dev")):
        if isinstance(options.get(name), list):
            kept[name] = [_name(other, kind, str(value)) for value in options[name]]
    raw["options"] = kept
    return StartRecord.from_dict(raw)


def _words_of(events: Events) -> re.Pattern[str] | None:
    """What the names of this recording look like in a text."""
    names = {name for called in events.devices.values() for _, name in called} - _KEPT_NAMES
    names |= {*events.processes.values(), events.start.host}
    found = sorted((re.escape(name) for name in names if name), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(found)})(?!\w)") if found else None


def _without(text: str, secret: re.Pattern[str] | None) -> str:
    return text if secret is None else secret.sub("...", text)


def redacted_filter(expression: str, other: Pseudonyms) -> str:
    """The filter with other addresses; nothing of it where it has a word that might be a name."""
    words, before = [], ""
    for word in re.findall(r"&&|\|\||[<>!=]=|[()!&|<>=]|[^\s()!&|<>=]+", expression):
        if word.lower() in _WORDS or _is_number(word, before):
            words.append(word)
        elif (address := _address_in(word, other)) is not None:
            words.append(address)
        else:
            return _REDACTED
        before = word.lower()
    return " ".join(words).replace("( ", "(").replace(" )", ")")


def _is_number(word: str, before: str) -> bool:
    """Whether it is a port's number or name, or a number that is compared with and too small for an address."""
    if before in _NUMBERED:
        return re.fullmatch(r"[0-9]+(-[0-9]+)?|[a-z]+", word) is not None
    return before in _COMPARED and re.fullmatch(r"[0-9]{1,2}|0x[0-9a-f]{1,2}", word) is not None


def _address_in(word: str, other: Pseudonyms) -> str | None:
    """An address of a filter, with or without the length of a prefix, replaced; None where it is none."""
    if re.fullmatch(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", word):
        return other.address(bytes(int(part, 16) for part in word.split(":"))).hex(":")
    address, slash, length = word.partition("/")
    try:
        packed = ipaddress.ip_address(address).packed
    except ValueError:
        return None
    if slash and not (length.isascii() and length.isdigit() and int(length) <= 8 * len(packed)):
        return None
    moved = ipaddress.ip_address(other.address(packed))
    return str(ipaddress.ip_network(f"{moved}/{length}", strict=False)) if slash else str(moved)
