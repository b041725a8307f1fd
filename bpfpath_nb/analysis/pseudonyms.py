"""Other names and addresses in place of the real ones: always the same for the same, by a key.

Addresses of IP are replaced as Crypto-PAn does it (Xu, Fan, Ammar, Moon, "Prefix-Preserving IP Address Anonymization",
ICNP 2002): a bit is turned or not, depending on a keyed hash of all bits before it. Two addresses that share their
first n bits still do so afterwards, and no more, so subnets show while nobody can tell which. The hash is BLAKE2b,
asked once for each distinct run of whole bytes: its output has room for the 255 decisions that the next byte may need.

Some addresses mean something to everybody, and a trace without that would be misread. Those of `_KEPT` stay in their
class: bits that tell a class are not turned, and what is given in full (the loopback network, well-known multicast
groups) is not turned at all. That costs neighbours of such a class some of their secrecy: 192.169.0.0/16 shares 15
bits with a class, so it keeps 16.

Like every prefix-preserving scheme this one yields to whoever can make the capture contain addresses of their choice,
or knows many of them: it is for showing a capture to colleagues and strangers, not for publishing a network's secrets.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

Addresses = npt.NDArray[np.uint8]
"""A matrix of bytes, an address in each row."""

_KEPT: Final = {
    4: (
        "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.168.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
    ),
    16: ("::/128", "::1/128", "::ffff:0:0/96", "64:ff9b::/96", "2000::/3", "fc00::/7", "fe80::/10", "ff00::/8",
         "ff02::1:ff00:0/104"),
}  # fmt: skip
"""By the size of an address: networks whose class an address keeps."""

_WHOLE: Final = {
    4: ("0.0.0.0/32", "127.0.0.0/8", "224.0.0.0/24", "255.255.255.255/32"),
    16: ("::/127", "ff02::1:0/112", *(f"ff0{scope}::/112" for scope in "123458e")),
}  # fmt: skip
"""Networks whose addresses stay as they are."""

_BROADCAST: Final = b"\xff" * 6
_GROUPS: Final = {b"\x01\x00\x5e": 3, b"\x33\x33": 2, b"\x01\x80\xc2": 6}
"""Beginnings of Ethernet addresses of groups (IPv4, IPv6, IEEE 802.1), and how many bytes of them stay."""


class Pseudonyms:
    """Replaces names and addresses.

    Parameters
    ----------
    key : bytes
        The same key gives the same pseudonyms.
    """

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32, person=b"bpfpath_nb").digest()
        self._names: dict[tuple[str, str], str] = {}
        self._taken: set[str] = set()

    def name(self, kind: str, name: str) -> str:
        """Another name, as `netns-3f9c01d2`; two names never become one."""
        if (kind, name) not in self._names:
            digest = self._hash(kind.encode() + b"\0" + name.encode("utf-8", "surrogateescape"), 32).hex()
            size = 8
            while (other := f"{kind}-{digest[:size]}") in self._taken:
                size += 1
            self._taken.add(other)
            self._names[kind, name] = other
        return self._names[kind, name]

    def address(self, packed: bytes) -> bytes:
        """One address of 4 (IPv4), 6 (Ethernet) or 16 bytes (IPv6)."""
        return self.addresses(np.frombuffer(packed, np.uint8)[None]).tobytes()

    def addresses(self, rows: Addresses) -> Addresses:
        """Addresses of 4, 6 or 16 bytes, replaced."""
        if not len(rows):
            return rows.copy()
        distinct, which = _distinct(rows)
        other = self._ethernet(distinct) if rows.shape[1] == 6 else self._ip(distinct)
        return other[which]

    def _ethernet(self, rows: Addresses) -> Addresses:
        """Another address for each, of a group where it was one's, and else marked as locally administered."""
        return np.array([list(self._ethernet_address(row.tobytes())) for row in rows], np.uint8)

    def _ethernet_address(self, packed: bytes) -> bytes:
        if packed in (_BROADCAST, bytes(6)):
            return packed
        other = self._hash(b"ethernet\0" + packed, 6)
        for begin, size in _GROUPS.items():
            if packed.startswith(begin):
                return packed[:size] + other[size:]
        return bytes([other[0] & 0xFC | 2 | packed[0] & 1]) + other[1:]

    def _ip(self, rows: Addresses) -> Addresses:
        size = rows.shape[1]
        other = np.zeros_like(rows)
        for at in range(size):
            before, which = _distinct(rows[:, :at]) if at else (rows[:1, :0], np.zeros(len(rows), np.intp))
            label = b"ip%d\0" % size
            hashes = b"".join(self._hash(label + prefix.tobytes(), 32) for prefix in before)
            turn = np.unpackbits(np.frombuffer(hashes, np.uint8).reshape(len(before), 32), axis=1)
            byte = rows[:, at].astype(np.intp)
            for bit in range(8):
                # The bits before this one lead to a node of a tree that is laid out level by level.
                node = (1 << bit) + (byte >> (8 - bit))
                kept = byte >> (7 - bit) & 1
                other[:, at] |= ((kept ^ turn[which, node]) << (7 - bit)).astype(np.uint8)
        keep = _kept_bits(rows)[:, None] > np.arange(8 * size)
        bits, turned = np.unpackbits(rows, axis=1), np.unpackbits(other, axis=1)
        return np.packbits(np.where(keep, bits, turned), axis=1)

    def _hash(self, data: bytes, size: int) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=size).digest()


def _distinct(rows: Addresses) -> tuple[Addresses, npt.NDArray[np.intp]]:
    """The rows that differ, and which of them each is."""
    whole = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").reshape(-1)
    distinct, which = np.unique(whole, return_inverse=True)
    return distinct.view(np.uint8).reshape(len(distinct), rows.shape[1]), which.reshape(-1)


def _kept_bits(rows: Addresses) -> npt.NDArray[np.intp]:
    """How many leading bits of each address are not turned.

    No bit is turned on the way to a network of `_KEPT`, so that its addresses, and no others, come to lie in it. An
    address that leaves that way after m bits keeps these and the one that leaves.
    """
    size = rows.shape[1]
    bits = np.unpackbits(rows, axis=1)
    keep = np.zeros(len(rows), np.intp)
    for networks, whole in ((_KEPT[size], False), (_WHOLE[size], True)):
        for beginning, length in _prefixes(networks):
            same = np.logical_and.accumulate(bits[:, :length] == beginning[:length], axis=1).sum(axis=1)
            inside = 8 * size if whole else length
            keep = np.maximum(keep, np.where(same == length, inside, same + 1))
    return keep


def _prefixes(networks: Iterable[str]) -> list[tuple[npt.NDArray[np.uint8], int]]:
    parsed = [ipaddress.ip_network(network) for network in networks]
    return [
        (np.unpackbits(np.frombuffer(network.network_address.packed, np.uint8)), network.prefixlen)
        for network in parsed
    ]
