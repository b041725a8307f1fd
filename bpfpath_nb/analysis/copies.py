"""The copies of a packet: its sk_buffs, which share its data and its number, and which of them still live.

A packet has one sk_buff or more: a packet socket gets a clone, a bridge that floods sends one through each port, TCP
keeps one until it is acknowledged. Each goes its own way and has its own end. The kernel gives the address of a freed
sk_buff to the next one, so an address that is seen again after its end is a living copy once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd


@dataclass(frozen=True)
class Copies:
    """All copies of all packets, packet by packet.

    Attributes
    ----------
    of : array
        For each row the position of its copy in what follows.
    packet : array
        Position of each copy's packet.
    lives : array of bool
        Whether its end was not seen.
    several : array of bool
        For each packet whether it has more than one.
    living : array
        For each packet how many of its copies live.
    """

    of: npt.NDArray[np.int32]
    packet: npt.NDArray[np.int32]
    lives: npt.NDArray[np.bool_]
    several: npt.NDArray[np.bool_]
    living: npt.NDArray[np.intp]


def find_copies(
    packet_of: npt.NDArray[np.int32],
    skb: npt.NDArray[np.uint64],
    is_end: npt.NDArray[np.bool_],
    is_last: npt.NDArray[np.bool_],
    is_kept: npt.NDArray[np.bool_],
) -> Copies:
    """Tell the copies of packets apart.

    Parameters
    ----------
    packet_of : array
        Position of each row's packet, ascending.
    skb : array
        Each row's sk_buff.
    is_end, is_last : arrays of bool
        Whether the row frees its sk_buff, and with it the packet's data.
    is_kept : array of bool
        Whether the row is in TCP. What is seen nowhere else, beside other copies, is what a sender keeps to send
        again: nothing becomes of that one.
    """
    if not len(skb):
        none, no_one = np.empty(0, np.int32), np.empty(0, bool)
        return Copies(none, none, no_one, no_one, np.empty(0, np.intp))
    # A copy's rows lie together in runs, of which there are far fewer than rows.
    begins = np.concatenate(([True], (packet_of[1:] != packet_of[:-1]) | (skb[1:] != skb[:-1])))
    first = np.flatnonzero(begins)
    address, addresses = pd.factorize(skb[first])
    copy, distinct = pd.factorize(packet_of[first].astype(np.int64) * len(addresses) + address)
    of = copy.astype(np.int32)[np.cumsum(begins, dtype=np.int32) - 1]
    packet, last = np.zeros(len(distinct), np.int32), np.zeros(len(distinct), np.intp)
    packet[copy] = packet_of[first]
    last[copy] = np.append(first[1:], len(skb)) - 1  # of several runs the last is kept
    count = int(packet_of[-1]) + 1
    gone = _any(packet_of[np.flatnonzero(is_last)], count)[packet]
    passed = _any(of[np.flatnonzero(~is_kept)], len(distinct))
    kept = ~passed & _any(packet[passed], count)[packet]
    lives = ~(is_end[last] | gone | kept)
    return Copies(
        of, packet, lives, np.bincount(packet, minlength=count) > 1, np.bincount(packet[lives], minlength=count)
    )


def _any(places: npt.NDArray[Any], count: int) -> npt.NDArray[np.bool_]:
    found = np.zeros(count, bool)
    found[places] = True
    return found
