"""What headers say beyond the flow: enough to know a packet again, and where a TCP segment stands in its connection.

Two packets with the same `twin` carry the same identification and the same bytes, but for what every router changes.
An IPv4 packet without identification (0, where it must not be fragmented) has none, since the next one may well look
the same; neither has IPv6, which identifies fragments only.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.headers import KINDS, Located, Matrix, Offsets, located
from bpfpath_nb.analysis.sequences import folded

CONTENT_DTYPE: Final = np.dtype(
    [
        ("twin", "u8"),  # hash of the stored bytes from the IPv4 header on; 0 where there is none
        ("proto", "u1"),
        ("first", "?"),  # whether a transport header may follow: an IP packet that is no later fragment
        ("type", "u1"),  # of ICMP and ICMPv6, with the code
        ("code", "u1"),
        ("flags", "u1"),  # of TCP from here on; 0 where there is none
        ("seq", "u4"),
        ("window", "u2"),
        ("data", "u2"),  # bytes of payload, at most as many as 16 bits count; 0 where it is not known
    ]
)

_ICMP, _TCP = (1, 58), 6
_IP6_HEADER: Final = 40  # its length does not count itself
_COMPARED: Final = 64
"""Bytes of a packet by which two are held to be the same."""


def contents(facts: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Read all rows of `facts` (schema.FACTS_DTYPE) into rows of CONTENT_DTYPE."""
    headers = located(facts)
    parsed, matrix, network = headers.parsed, headers.matrix, headers.network
    found = segments(headers, facts["len"])
    icmp = found["first"] & np.isin(parsed["proto"], _ICMP) & (parsed["ends"] == 1)
    found["type"], found["code"] = (np.where(icmp, parsed[end], 0) for end in ("sport", "dport"))
    four = parsed["kind"] == KINDS["ip"]
    found["twin"] = np.where(four & (matrix.u16(network + 4) != 0), _twins(matrix, network), 0)
    return found


def segments(headers: Located, length: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    """As `contents`, of located headers and the sk_buffs' lengths; only what TCP says, and whether it is TCP."""
    parsed, matrix, network, transport = headers.parsed, headers.matrix, headers.network, headers.transport
    found = np.zeros(len(parsed), CONTENT_DTYPE)
    four = parsed["kind"] == KINDS["ip"]
    ip = four | (parsed["kind"] == KINDS["ip6"])
    found["proto"] = np.where(ip, parsed["proto"], 0)
    found["first"] = ip & (parsed["fragment"] == 0)
    tcp = found["first"] & (parsed["proto"] == _TCP) & matrix.has(transport, 16)
    found["flags"] = np.where(tcp, matrix.u8(transport + 13), 0)
    found["seq"] = np.where(tcp, (matrix.u16(transport + 4).astype(np.int64) << 16) | matrix.u16(transport + 6), 0)
    found["window"] = np.where(tcp, matrix.u16(transport + 14), 0)
    size = transport - network + (matrix.u8(transport + 12) >> 4) * 4
    found["data"] = np.where(tcp, _length(matrix, network, four, length) - size, 0).clip(0, 0xFFFF)
    return found


def _length(matrix: Matrix, network: Offsets, four: npt.NDArray[np.bool_], length: npt.NDArray[Any]) -> Offsets:
    """Bytes of each IP packet, from its header on.

    Where the header does not say it, the sk_buff does: on the way out the kernel writes it late (`__ip_local_out`), and
    in segments larger than 64 KiB not at all.
    """
    told = np.where(four, matrix.u16(network + 2), matrix.u16(network + 4)).astype(np.int64)
    return np.where(told > 0, told + np.where(four, 0, _IP6_HEADER), length.astype(np.int64) - network)


def _twins(matrix: Matrix, network: Offsets) -> npt.NDArray[np.uint64]:
    at = network[:, None] + np.arange(_COMPARED)
    stored = at < matrix.caplen[:, None]
    data = np.where(stored, matrix.data[matrix.rows[:, None], at.clip(max=matrix.data.shape[1] - 1)], 0)
    data[:, 8] = data[:, 10] = data[:, 11] = 0  # time to live and checksum change at every router
    words = np.ascontiguousarray(data.astype(np.uint8)).view("<u8").reshape(len(data), _COMPARED // 8)
    return folded(words)
