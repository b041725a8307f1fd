"""Fragments of which the kernel tells nothing more, with an identification that is used again."""

from __future__ import annotations

import numpy as np
from streams import CLIENT, END, LAST, facts_row, hop, of_hops

from bpfpath_nb.analysis.reassembly import reassemble
from bpfpath_nb.lab import wire
from bpfpath_nb.schema import LINKS

IDENT = 77
HALF = 1480


def packet(payload: int, fragment: int = 0) -> bytes:
    return wire.ipv4("10.0.1.2", "10.0.2.2", 1, bytes(payload), ident=IDENT, fragment=fragment)


def test_what_a_sender_has_not_cut_yet_is_no_whole_of_earlier_fragments() -> None:
    hops, facts = [], []
    for number, time in ((1, 1000), (3, 9000)):
        first, second = ({"packet": of, "netns": CLIENT, "skb": of << 8} for of in (number, number + 1))
        for of, snapshot, data in (
            (number, 0, packet(2 * HALF)),
            (number, 1, packet(HALF, wire.MORE_FRAGMENTS)),
            (number + 1, 0, packet(HALF, HALF // 8)),
        ):
            facts.append(facts_row(data, of, snapshot, link=LINKS["ip"]))
        hops += [
            hop("ip_rcv.isra.0", time=time, len=20 + 2 * HALF, snapshot=0, **first),  # any of the layer
            hop("__dev_queue_xmit", time=time + 5, len=20 + HALF, snapshot=0, **second),  # and stays in a queue
            hop("consume_skb", END | LAST, time=time + 20, len=14 + 20 + HALF, snapshot=1, **first),
        ]
    recording = of_hops(*hops, facts=np.concatenate(facts))

    assert reassemble(recording.events).tolist() == [0] * 4
    assert recording.packets["verdict"].tolist()[1::2] == ["unfinished"] * 2
