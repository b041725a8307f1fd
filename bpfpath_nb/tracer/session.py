"""One capture, from the start record to the last batch.

The order matters. Everything is attached before the start record goes out, and only then `armed` is set in the
kernel: half a set of probes would see packets in their middle. While the capture runs, one loop does all there
is to do, every few milliseconds: drain, look for new places, count, listen for the end. At the end `armed` is
taken back first, what the rings still hold is sent, then the probes are detached.
"""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bpfpath_nb.kernel import Kernel
from bpfpath_nb.schema import EVENT_FLAGS, FACTS_KINDS, SCHEMA_VERSION
from bpfpath_nb.stream import Sink, Writer
from bpfpath_nb.tracer.attachment import Attachment
from bpfpath_nb.tracer.counters import ARMED, CLOSING, DISARMED
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.version import __version__

DRAIN_EVERY = 0.005
LOOK_EVERY = 0.05
COUNT_EVERY = 0.2
SETTLE_WITHIN = 0.08
"""How long packets that are under way may take at the end, in seconds; long enough to tell what was read."""
FINISH_WITHIN = 1.0
"""How long the packets of a full capture may take to come to their ends, in seconds."""

PROBING = ("bpf_", "traceiter_", "perf_trace_", "ftrace_", "kprobe_")
"""How the names of functions begin that run a probe, without underscores."""

Listen = Callable[[float], str]
"""Waits so many seconds for the notebook's word; the reason when the capture is to end, else nothing."""


class Gone(Exception):  # noqa: N818 - not an error: the end
    """Nobody is at the other end any more, or this process must not serve any longer."""


def identity() -> dict[str, Any]:
    """What every start record begins with: who speaks, of which machine, at what time by which clock."""
    # The pair is taken as closely together as can be: the shortest of a few tries.
    pairs = []
    for _ in range(5):
        before, realtime, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        pairs.append((after - before, (before + after) // 2, realtime))
    _, monotonic, realtime = min(pairs)
    return {
        "version": SCHEMA_VERSION,
        "tool": __version__,
        "release": platform.release(),
        "machine": platform.machine(),
        "host": platform.node(),
        "clock": {"monotonic": monotonic, "realtime": realtime},
    }


def capture(request: Request, kernel: Kernel, sink: Sink, listen: Listen) -> None:
    """Attach, record, detach; the stream goes to `sink`.

    Raises
    ------
    BpfpathError
        The capture could not start. Nothing was written.
    """
    attachment = Attachment(request, kernel)
    writer = None
    detached = True
    try:
        writer = Writer(sink, {**identity(), **attachment.start_record()})
        end = _Run(request, attachment, writer).until(listen)
    except Gone:
        raise
    except Exception as error:
        if writer is None:
            raise
        end = _failed(error)
    finally:
        try:
            attachment.close()
        except Exception as error:
            detached = False
            end = _failed(error)
    # The end is told when nothing is attached any more: who waited for it finds the machine as it was.
    assert writer is not None
    writer.write(end=end)
    if not detached:
        raise Gone  # what could not be taken away goes with this process's descriptors


def _failed(error: Exception) -> dict[str, Any]:
    """The end of a capture that an error ended. The stream is open, so this is said in it and not in another."""
    traceback.print_exc()
    return {"reason": "error", "time": time.monotonic_ns(), "message": f"{type(error).__name__}: {error}"}


class _Run:
    """The loop of one capture."""

    def __init__(self, request: Request, attachment: Attachment, writer: Writer) -> None:
        self._request = request
        self._attachment = attachment
        self._writer = writer
        self._delivered = 0
        self._over = 0
        self._namespaces: set[int] = set()
        self._locations: set[int] = {0}
        self._probes: set[int] = set()
        self._full_since: float | None = None
        self._refusals_told = len(attachment.refused)

    def until(self, listen: Listen) -> dict[str, Any]:
        """Record until something ends it; says what."""
        self._attachment.counters.arm(ARMED)
        self._tell()
        started = now = time.monotonic()
        next_look = next_count = started
        reason = ""
        while not reason:
            busy = self._drain()
            reason = listen(0.0 if busy else DRAIN_EVERY)
            now = time.monotonic()
            if now >= next_look:
                next_look = now + LOOK_EVERY
                self._attachment.look_around(self._namespaces)
            if now >= next_count:
                next_count = now + COUNT_EVERY
                self._attachment.look_at_modules()
                self._tell()
            reason = reason or self._limit(now - started, now)
        ended = time.monotonic_ns()
        self._close()
        return {"reason": reason, "time": ended}

    def _close(self) -> None:
        """Take up nothing new, give what is under way a moment to come to its end, and send what there is."""
        counters = self._attachment.counters
        counters.arm(CLOSING)
        patience = time.monotonic() + SETTLE_WITHIN
        while self._drain() or (counters.state()["tagged"] and time.monotonic() < patience):
            time.sleep(DRAIN_EVERY)
        counters.arm(DISARMED)
        while self._drain():
            pass
        self._attachment.look_around(self._namespaces)
        self._tell(final=True)

    def _limit(self, elapsed: float, now: float) -> str:
        """Which of the request's limits is reached, or nothing."""
        request = self._request
        if self._delivered >= request.max_events:
            return "max_events"
        if request.duration is not None and elapsed >= request.duration:
            return "duration"
        if request.packets is not None:
            state = self._attachment.counters.state()
            if state["packets"] >= request.packets:
                self._full_since = self._full_since or now
                if not state["tagged"] or now - self._full_since >= FINISH_WITHIN:
                    return "packets"
        return ""

    def _drain(self) -> bool:
        """Send one run. The facts are taken after the events: what an event refers to was written before it."""
        events = self._attachment.events.take()
        facts = self._attachment.facts.take()
        if not len(events) and not len(facts):
            return False
        room = max(0, self._request.max_events - self._delivered)
        self._over += max(0, len(events) - room)
        events = events[:room]
        self._delivered += len(events)
        self._namespaces.update(np.unique(events["netns"]).tolist())
        ends = events["flags"] & (EVENT_FLAGS["end"] | EVENT_FLAGS["merged"]) == EVENT_FLAGS["end"]
        addresses = np.concatenate([events["location"][ends], _frames(facts).reshape(-1)])
        side: dict[str, Any] = {"locations": self._resolve(addresses)}
        if reads := self._attachment.deliveries.unseen(facts):
            side["reads"] = reads
        facts = facts[facts["kind"] != FACTS_KINDS["unseen"]]
        if len(facts):
            side["facts"] = _bounded(self._without_probes(facts))
        self._writer.write(events, side)
        return True

    def _tell(self, *, final: bool = False) -> None:
        """Send the counters, and the names of places that were not told yet."""
        attachment = self._attachment
        devices, attachment.devices = attachment.devices, []
        counters = attachment.counters.read(attachment.counted, final=final)
        counters["events_over"] = self._over
        refused = attachment.refused[self._refusals_told :]
        self._refusals_told += len(refused)
        self._writer.write(
            refused=refused, side={"devices": devices, "reads": attachment.deliveries.look()}, counters=counters
        )

    def _resolve(self, locations: npt.NDArray[np.uint64]) -> list[tuple[int, str, int]]:
        fresh = sorted(set(np.unique(locations).tolist()) - self._locations)
        if not fresh:
            return []
        self._locations.update(fresh)
        self._attachment.look_at_modules()  # or an address in a new one would take the name of what lies before it
        found = self._attachment.kernel.symbols.resolve(np.array(fresh, np.uint64))
        self._probes.update(
            address
            for address, symbol in zip(fresh, found, strict=True)
            if not symbol.name or symbol.name.lstrip("_").startswith(PROBING)
        )
        return [
            (address, symbol.name, symbol.offset) if symbol.name else (address, f"{address:#x}", 0)
            for address, symbol in zip(fresh, found, strict=True)
        ]

    def _without_probes(self, facts: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Stacks from the function on that freed the packet: the innermost frames are our program and what runs it."""
        drops = facts["kind"] == FACTS_KINDS["drop"]
        frames = _frames(facts)
        if not len(frames):
            return facts
        ours = np.isin(frames, np.array(sorted(self._probes), np.uint64))
        count = np.logical_and.accumulate(ours, axis=1).sum(axis=1)
        at = np.arange(frames.shape[1]) + count[:, None]
        inside = at < frames.shape[1]
        frames = np.where(inside, np.take_along_axis(frames, np.where(inside, at, 0), 1), 0)
        facts["headers"][drops] = frames.view(np.uint8)
        return facts


def _frames(facts: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """The stacks among the facts."""
    return np.ascontiguousarray(facts["headers"][facts["kind"] == FACTS_KINDS["drop"]]).view(np.uint64)


def _bounded(facts: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Snapshots cut to their packets: behind a short one lies memory of the kernel."""
    beyond = np.arange(facts["headers"].shape[1]) >= facts["caplen"][:, None]
    beyond[facts["kind"] != FACTS_KINDS["snapshot"]] = False
    facts["headers"][beyond] = 0
    return facts
