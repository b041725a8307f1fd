"""Waiting in TCP's out-of-order queue, told from sequence numbers: of a recorded connection, and of a modelled one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from streams import CLIENT, END, LAST, SERVER, TCP_CLOSE, facts_row, hop, of_hops

from bpfpath_nb import Recording
from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.lab import wire
from bpfpath_nb.schema import LINKS, QUEUES

RECORDED = Path(__file__).parents[1] / "recordings" / "out-of-order-6.18.parquet"
MS = 1_000_000


def segment(seq: int, size: int = 0, flags: int = wire.ACK, sport: int = 5000) -> bytes:
    """A TCP segment of `size` bytes in an IPv4 packet."""
    tcp = wire.tcp("10.0.1.2", "10.0.2.2", sport, 80, seq=seq % (1 << 32), flags=flags, payload=bytes(size))
    return wire.ipv4("10.0.1.2", "10.0.2.2", 6, tcp)


class Traffic:
    """Packets that come to the server's socket, each with the hop that takes it up."""

    def __init__(self) -> None:
        self.hops: list[dict[str, int]] = []
        self.facts: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.facts)

    def arrives(
        self, at: int, headers: bytes, taken: int = 0, how: str = "skb_copy_datagram_iovec", location: int = 0
    ) -> int:
        """One more; its number."""
        number = len(self) + 1
        self.facts.append(facts_row(headers, number, link=LINKS["ip"]))
        place = {"packet": number, "netns": SERVER, "skb": 0xFFFF888000000000 + number * 256}
        self.hops.append(hop("tc_ingress", time=at, **place))
        if taken:
            flags = 0 if how == "skb_copy_datagram_iovec" else END | LAST
            drop = {"reason": 8 * (how == "kfree_skb"), "location": location}
            self.hops.append(hop(how, flags, time=taken, **drop, **place))
        return number

    def recording(self) -> Recording:
        return of_hops(*self.hops, facts=np.concatenate(self.facts))

    def held(self) -> set[int]:
        """The packets that are said to have waited out of order."""
        events = self.recording().events
        return set(events.hops["packet"][events.held.put].tolist())

    def queues(self, number: int) -> list[str]:
        """After each hop of a packet the queue that it waited in."""
        events = self.recording().events
        return [QUEUES[code] if code >= 0 else "" for code in hop_waits(events)[events.hops["packet"] == number]]


class Socket:
    """What TCP does with what arrives: the model to which sequence numbers are to lead."""

    def __init__(self, traffic: Traffic, random: np.random.Generator, time: int, begin: int, sport: int) -> None:
        self.traffic, self.random, self.begin, self.sport = traffic, random, begin, sport
        self.time = time
        self.here: set[int] = set()
        self.whole = 0  # so much has come without a gap
        self.queued: list[tuple[int, int, bytes, bool]] = []
        self.filled: dict[int, int] = {}
        traffic.arrives(time, segment(begin, flags=wire.SYN, sport=sport), time + 1, "consume_skb")

    def take(self, start: int, end: int) -> None:
        """Data arrive. They are dropped where they bring nothing new, or by chance."""
        self.time += 10
        headers = segment(self.begin + 1 + start, end - start, sport=self.sport)
        if self.here.issuperset(range(start, end)) or self.random.random() < 0.1:
            self.traffic.arrives(self.time, headers, self.time + 1, "kfree_skb")
            return
        self.queued.append((start, self.time, headers, start > self.whole))
        self.here.update(range(start, end))
        while self.whole in self.here:
            self.whole += 1
        for at, (begin, _, _, late) in enumerate(self.queued):
            if late and begin < self.whole:
                self.filled.setdefault(at, self.time)

    def close(self) -> set[int]:
        """Everything is read that can be, or was merged when what was missing came; which of it waited."""
        held = set()
        for at, (_, came, headers, late) in enumerate(self.queued):
            if late and at not in self.filled:
                self.traffic.arrives(came, headers)
            elif late and self.random.random() < 0.5:
                held.add(self.traffic.arrives(came, headers, self.filled[at] + 1, "consume_skb"))
            else:
                number = self.traffic.arrives(came, headers, self.time + 10 + at)
                held |= {number} if late else set()
        return held


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_what_waited_is_what_a_receiver_had_to_keep(seed: int, wraps: bool) -> None:
    random = np.random.default_rng(seed)
    traffic, expected, time = Traffic(), set(), 1000
    for connection in range(6):
        # Two at a time are open; the ports come again.
        begin = (1 << 32) - 9 * connection - 5 if wraps else int(random.integers(1 << 32))
        socket = Socket(traffic, random, time, begin, 5000 + connection % 2)
        edges = np.append(0, np.sort(random.choice(np.arange(1, 60), 11, replace=False))).tolist()
        for at in [*random.permutation(np.repeat(np.arange(11), 2)).tolist(), 0]:
            socket.take(edges[at], edges[min(at + 1 + int(random.random() < 0.2), 11)])
        expected |= socket.close()
        time = socket.time - 100 if connection % 2 == 0 else socket.time + 1000

    assert traffic.held() == expected
    assert len(expected) >= 10


def test_what_was_purged_with_its_socket_had_come() -> None:
    traffic = Traffic()
    kept = traffic.arrives(20, segment(110, 10), taken=50, how="consume_skb", location=TCP_CLOSE)
    traffic.arrives(30, segment(100, 10), taken=51, how="consume_skb", location=TCP_CLOSE)

    assert traffic.held() == {kept}


def test_a_segment_that_comes_again_though_it_had_come_fills_nothing() -> None:
    traffic = Traffic()
    traffic.arrives(20, segment(110, 10), taken=50)
    traffic.arrives(30, segment(100, 10), taken=31, how="kfree_skb")  # its first arrival was before the capture

    assert traffic.held() == set()


def test_what_is_read_past_had_come_unseen() -> None:
    traffic = Traffic()
    traffic.arrives(20, segment(110, 10), taken=25)
    traffic.arrives(22, segment(120, 10), taken=60)
    traffic.arrives(30, segment(100, 10))

    assert traffic.held() == set()


def test_what_went_on_through_a_namespace_did_not_wait_in_it() -> None:
    traffic = Traffic()
    on_the_way = traffic.arrives(20, segment(110, 10))
    place = {"packet": on_the_way, "netns": SERVER, "skb": traffic.hops[0]["skb"]}
    traffic.hops += [hop("net_dev_start_xmit", time=21, **place), hop("consume_skb", END | LAST, time=50, **place)]
    traffic.arrives(30, segment(100, 10), taken=60)

    assert traffic.held() == set()


def test_only_what_lies_in_the_queue_until_data_come_waited_out_of_order() -> None:
    traffic = Traffic()
    kept = traffic.arrives(20, segment(110, 10), taken=90)
    skb = traffic.hops[0]["skb"] + 128  # the sender's copy, given up when all is acknowledged
    elsewhere = {"packet": kept, "netns": CLIENT, "skb": skb}
    traffic.hops.append(hop("consume_skb", END, time=50, **elsewhere))
    traffic.arrives(45, segment(100, 10), taken=60)

    assert traffic.queues(kept) == ["out-of-order", "socket", ""]


@pytest.mark.parametrize(("came", "queue"), [(21, "socket"), (89, "out-of-order")])
def test_a_gap_is_what_it_waited_longer_for(came: int, queue: str) -> None:
    traffic = Traffic()
    kept = traffic.arrives(20, segment(110, 10), taken=92)
    traffic.arrives(came, segment(100, 10), taken=91)

    assert traffic.held() == {kept}
    assert traffic.queues(kept) == [queue, ""]


def test_nothing_waits_where_all_that_was_sent_again_was_dropped() -> None:
    traffic = Traffic()
    for at, seq in ((20, 110), (40, 110), (240, 100)):
        traffic.arrives(at, segment(seq, 10), taken=at + 1, how="kfree_skb")

    assert traffic.held() == set()
    assert traffic.recording().transitions["queue"].isna().all()


def test_a_recorded_connection_tells_which_segments_waited() -> None:
    recording = Recording.load(RECORDED)
    df = recording.df
    df["queue"] = [QUEUES[code] if code >= 0 else "" for code in hop_waits(recording.events)]

    waited = df[df["queue"] == "out-of-order"]

    # "waits" and "waits too", and neither what they waited for nor what came in order before and after it.
    lengths = recording.packets["length"].astype(int) - 52
    assert lengths[waited.index.get_level_values("packet")].tolist() == [5, 9]
    assert (waited["gap"].astype("int64") > 100 * MS).all()
    socket = df[df["queue"] == "socket"].index.get_level_values("packet").unique()
    assert sorted(lengths[socket]) == [4, 8, 8, 14]


def test_a_packet_drawn_alone_waits_as_it_does_among_all() -> None:
    events = Recording.load(RECORDED).events
    whole = hop_waits(events)

    alone = [
        hop_waits(events, slice(int(first), int(first + count)))
        for first, count in zip(events.first, events.counts, strict=True)
    ]

    assert np.concatenate(alone).tolist() == whole.tolist()
    assert (whole == QUEUES.index("out-of-order")).sum() == 2
