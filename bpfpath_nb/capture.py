"""A capture: it starts a tracer, collects what that sends, and stops it.

This side knows no BPF and needs no privilege. One thread reads the tracer's stream and adds each batch to a
collector; the notebook's own thread only ever looks at what is there. No event loop is involved, so it works in
a notebook as in a script.

    Capture(...)  --start-->   tracer   attaches, then answers
                  <--stream--           start record, then batches: the first one means "armed"
    stop()        --stop--->            detaches, then says that it is done

While it runs, and afterwards, the capture has everything that a `Recording` has: `recording` is the picture of
the moment.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import threading
import time
import weakref
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from bpfpath_nb import tracers
from bpfpath_nb.analysis.events import Collector
from bpfpath_nb.errors import ArmTimeoutError, BpfpathError, OptionError, RequirementError, TracerError
from bpfpath_nb.filter import Filter
from bpfpath_nb.io.live import Copied, LiveFile
from bpfpath_nb.io.path import file_path
from bpfpath_nb.kernel.sets import read_list
from bpfpath_nb.printable import printable_lines
from bpfpath_nb.recording import Recording, RecordingViews
from bpfpath_nb.stream import REQUEST_LIMIT, Reader, Source

if TYPE_CHECKING:
    from bpfpath_nb.start import StartRecord

ARM_WITHIN = 60.0
"""How long a capture may take to be armed, in seconds; ten times that on an emulated processor."""

END_WITHIN = 15.0
"""How long the tracer may take to detach."""

LONGEST_TIMEOUT = 86400.0


@dataclass(frozen=True)
class Status:
    """How a capture is doing."""

    state: str
    """arming, capturing, stopped or failed"""
    reason: str
    """why it ended: stopped, duration, packets, max_events, interrupted; or the error"""
    seconds: float
    """how long it has been capturing"""
    packets: int
    events: int
    lost: int
    """events that found the ring full"""

    def __str__(self) -> str:
        lost = f", {self.lost} events lost" if self.lost else ""
        why = f" ({self.reason})" if self.reason and self.reason != "stopped" else ""
        return f"{self.state}{why}: {self.packets} packets, {self.events} hops in {self.seconds:.1f} s{lost}"


class Capture(RecordingViews):
    """Follow the packets that a filter takes through the kernel. Armed when this returns; capturing in the background.

    Parameters
    ----------
    filter : str
        An expression of pcap-filter(7), such as ``"udp port 53"``. Empty: every packet.
    on : str
        Where to trace: ``"local"``, or another host as ``"ssh://user@host"``.
    functions : str or list of str
        Which functions to trace: ``"default"``, ``"all"``, ``"drops"``, a list of names, a regular expression,
        or a file with a name a line. Besides, what tells packets from each other and of their ends is always traced.
    namespaces : list of str or int, optional
        Only in these network namespaces: names as of ``ip netns``, ``"host"``, paths, or inode numbers. By
        default in all, also those that come into being meanwhile.
    interfaces : list of str, optional
        Only packets that are first seen on these interfaces. By default on all.
    match : {'entry', 'tc', 'every'}
        Where the filter is asked: where packets enter the stack (TC, first functions on receive and send,
        drops), only in TC as in the paper, or in every probe.
    returns : bool
        Trace the returns of functions too.
    duration : float, optional
        Stop after so many seconds.
    packets : int, optional
        Stop after so many packets, when they have come to their ends.
    max_events : int
        Stop after so many hops.
    sample : int
        Follow one packet in so many.
    events_ring, facts_ring : int
        Sizes of the ring buffers for hops, and for what is told once of a packet, in bytes, powers of two. Larger
        ones lose less in bursts. From kernel 5.12 on each CPU has a ring for its hops: an equal share, or on a machine
        with many CPUs 2 MiB, as long as all together have no more than four times this.
    save : path, optional
        Keep the recording in this file while it grows, so that whatever kills this process leaves a file that
        `Recording.load` reads. `stop` (or the end of the `with` block) makes the Parquet file of it.
    timeout : float, optional
        How long arming may take, in seconds. By default a minute, longer on an emulated processor.

    Raises
    ------
    FilterError, FunctionError, NamespaceError, InterfaceError, OptionError
        An argument that makes no sense here. Nothing is attached.
    PrivilegeError, RequirementError, HostError
        The machine does not let us, or lacks something. `doctor()` shows what.
    ArmTimeoutError, TracerError
        The tracer did not get ready, or failed. Nothing stays attached.
    """

    def __init__(
        self,
        filter: str = "",  # noqa: A002 - the word that everybody uses for it
        *,
        on: str = "local",
        functions: str | os.PathLike[str] | list[str] = "default",
        namespaces: list[str | int] | None = None,
        interfaces: list[str] | None = None,
        match: str = "entry",
        returns: bool = False,
        duration: float | None = None,
        packets: int | None = None,
        max_events: int = 5_000_000,
        sample: int = 1,
        events_ring: int = 1 << 24,
        facts_ring: int = 1 << 22,
        save: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        limit = _arm_limit() if timeout is None else _seconds("timeout", timeout)
        _check_filter(filter)
        request = {
            "filter": filter,
            **_functions(functions),
            "namespaces": _list(namespaces),
            "interfaces": _list(interfaces),
            "match": match,
            "returns": returns,
            "duration": duration,
            "packets": packets,
            "max_events": max_events,
            "sample": sample,
            "events_ring": events_ring,
            "facts_ring": facts_ring,
        }
        _check_json(request)
        with ExitStack() as unless_armed:
            live = None if save is None else LiveFile(file_path(save))
            if live is not None:
                unless_armed.callback(live.close)
            tracer = tracers.acquire(on)
            self._stream = _Stream(tracer, live)
            # A capture that nobody can reach any more (its name was given to the next one) must not go on unseen.
            weakref.finalize(self, self._stream.forget).atexit = False
            try:
                tracer.say({"start": request})
                armed = self._stream.armed.wait(limit)
            except BaseException:
                self._stream.abandon()
                raise
            if not armed:
                gone = self._stream.abandon()
                raise ArmTimeoutError(
                    f"The capture was not armed within {limit:g} s; {'nothing is attached' if gone else _MAY_STAY}. A "
                    "slow or emulated machine needs longer: pass `timeout=`. `doctor()` shows whether something is "
                    "missing."
                )
            if self._stream.collector is None:
                raise self._stream.why_none() from None
            unless_armed.pop_all()
        if live is not None:
            live.show()
        self._live = live
        self._collector: Collector = self._stream.collector
        self._armed_at = time.monotonic()
        _captures.add(self)

    # -- what there is

    @property
    def start(self) -> StartRecord:
        """What the capture said of itself when it began: filter, kernel, probes."""
        return self._collector.start

    @property
    def recording(self) -> Recording:
        """What is recorded, as of now. Reading never stops the capture."""
        return Recording(self._collector.events())

    @property
    def status(self) -> Status:
        """How the capture is doing."""
        stream, counters = self._stream, self._collector.counters
        ended = stream.ended_at
        state = "failed" if stream.error is not None else "capturing" if ended is None else "stopped"
        reason = str(stream.error or (self._collector.end or {}).get("reason", ""))
        # The tracer counts also packets of which no event was kept.
        cut = counters.get("events_over", 0) > 0
        return Status(
            state,
            reason,
            (time.monotonic() if ended is None else ended) - self._armed_at,
            len(self._collector.events().packets) if cut else counters.get("packets", 0),
            len(self._collector),
            counters.get("events_lost", 0),
        )

    # -- until when

    def wait(self, packets: int | None = None, seconds: float | None = None) -> Self:
        """Wait until the capture ends by itself, or earlier.

        Parameters
        ----------
        packets : int, optional
            Until so many packets were seen.
        seconds : float, optional
            At the longest so long.

        Returns
        -------
        Capture
            Itself. It goes on capturing where it was not its own limit that was reached. Interrupting the wait
            (the notebook's stop button, Ctrl-C) stops the capture and keeps what was captured.

        Raises
        ------
        TracerError
            The tracer died. What it had sent is kept.
        """
        if packets is None and seconds is None and not self._has_limit():
            raise OptionError(
                "This capture has no end of its own, so there is nothing to wait for: pass `packets` or "
                "`seconds`, or call `stop()`."
            )
        until = None if seconds is None else time.monotonic() + seconds
        try:
            while not self._stream.ended.is_set() and self._stream.is_mine:
                if packets is not None and self._collector.counters.get("packets", 0) >= packets:
                    break
                left = 0.05 if until is None else min(0.05, until - time.monotonic())
                if left <= 0:
                    break
                self._stream.ended.wait(left)
        except KeyboardInterrupt:
            self._stream.finish("interrupted")
            return self
        if self._stream.error is not None:
            raise self._stream.error
        return self

    def stop(self) -> Self:
        """Stop capturing, and detach everything. Once is enough, more does no harm.

        Interrupted (Ctrl-C) while it waits for the tracer, it can be called again. In a process that was forked from
        the one that made the capture it does nothing: the capture is the other one's.

        Returns
        -------
        Capture
            Itself.

        Raises
        ------
        OSError
            The file of `save=` cannot be written. What was captured is in memory, and in the file as far as it came.
        """
        self._stream.finish()
        if self._live is not None and self._stream.is_mine and self._stream.ended.is_set():
            self.save(self._live.path)
            self._live.close()
            self._live = None
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _has_limit(self) -> bool:
        return any(self._collector.start.options.get(name) is not None for name in ("duration", "packets"))

    @property
    def _tracer(self) -> tracers.TracerProcess | None:
        return self._stream.tracer

    def __repr__(self) -> str:
        return f"Capture({self._collector.start.filter!r}) {self.status}\n{self.recording!r}"

    def _repr_html_(self) -> str:
        from bpfpath_nb.html.summary import summary_html

        return summary_html(self.recording, status=str(self.status), name="Capture")


_captures: weakref.WeakSet[Capture] = weakref.WeakSet()


def running() -> list[Capture]:
    """The captures of this process that are capturing, the oldest first."""
    captures = [capture for capture in _captures if capture._stream.is_mine]
    captures = [capture for capture in captures if capture.status.state == "capturing"]
    return sorted(captures, key=lambda capture: capture._armed_at)


class _Stream:
    """A capture's tracer, and the thread that reads what it sends. It holds no reference to the capture."""

    running: ClassVar[set[_Stream]] = set()

    def __init__(self, tracer: tracers.TracerProcess, live: LiveFile | None = None) -> None:
        self.tracer: tracers.TracerProcess | None = tracer
        self.armed = threading.Event()
        self.ended = threading.Event()
        self.ended_at: float | None = None
        self.collector: Collector | None = None
        self.error: BpfpathError | None = None
        self._owner = os.getpid()
        self._finishing = threading.Lock()
        self.running.add(self)
        self._thread = threading.Thread(
            target=self._read,
            args=(tracer.output if live is None else Copied(tracer.output, live),),
            name="bpfpath_nb capture",
            daemon=True,
        )
        self._thread.start()

    @property
    def is_mine(self) -> bool:
        """Whether this is the process that started the capture, and no child that was forked from it."""
        return os.getpid() == self._owner

    def _read(self, output: int | Source) -> None:
        try:
            reader = Reader(output)
            for batch in reader:
                if self.collector is None:
                    self.collector = Collector(reader.start)
                self.collector.start = reader.start
                self.collector.add(batch)
                # The first batch leaves when the probes are live.
                self.armed.set()
            if self.collector is not None and (self.collector.end or {}).get("reason") == "error":
                what = self.collector.end.get("message", "an error") if self.collector.end else ""
                error = TracerError(
                    f"The tracer failed: {printable_lines(str(what))}. What it had sent is kept. This is a bug; "
                    "please report it."
                )
                error.reported = True
                raise error
        except BpfpathError as error:
            self.error = error
        finally:
            self.ended_at = time.monotonic()
            self.running.discard(self)
            self.ended.set()
            self.armed.set()

    def finish(self, reason: str = "stopped") -> None:
        """Stop the capture, wait until it is detached, and keep the tracer for the next one.

        May be repeated, also after an interrupt in its middle: the tracer is let go of only when it is done with.
        """
        if not self.is_mine:
            return
        with self._finishing:
            tracer = self.tracer
            if tracer is None:
                return
            if not self.ended.is_set():
                tracer.say({"stop": reason})
            if self.ended.wait(END_WITHIN) and (self.error is None or self.error.reported):
                self._thread.join(5.0)
                self.tracer = None
                tracers.release(tracer)
            else:
                self.abandon()

    def abandon(self) -> bool:
        """End the tracer, and the thread with it; whether the tracer's end was seen."""
        tracer = self.tracer
        if tracer is None or not self.is_mine:
            return tracer is None
        gone = tracer.end(patience=2.0)
        self._thread.join(5.0)
        if self._thread.is_alive():  # it still reads from the pipe, which must not be closed under it
            return False
        tracer.close()
        self.tracer = None
        return gone

    def forget(self) -> None:
        """Finish without being waited for. A finalizer runs in any thread, also in the one that reads."""
        if self.is_mine and self.tracer is not None:
            with suppress(RuntimeError):  # no more threads at the interpreter's end; `_end_all` comes then
                threading.Thread(target=self.finish, name="bpfpath_nb finish", daemon=True).start()

    def why_none(self) -> BpfpathError:
        """The error of a capture that did not start; the tracer is let go of."""
        error = self.error
        assert error is not None
        if not error.reported and self.tracer is not None:
            error = self.tracer.explain(error)
        self.finish()
        return error


_MAY_STAY = (
    "the end of its tracer was not seen, so something may stay attached until the tracer notices that nobody "
    "listens, some seconds from now"
)


@atexit.register
def _end_all() -> None:
    """End what was forgotten: a thread in the middle of Arrow's code would not survive the end of the interpreter."""
    for stream in list(_Stream.running):
        stream.abandon()


os.register_at_fork(after_in_child=_Stream.running.clear)  # they are the parent's


def _check_filter(expression: object) -> None:
    """Refuse a bad filter before anything is started. Without libpcap here the tracer does it."""
    if not isinstance(expression, str):
        raise OptionError("The filter is text, an expression of pcap-filter(7) such as 'udp port 53'.")
    try:
        Filter(expression)
    except RequirementError:
        return


def _seconds(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= LONGEST_TIMEOUT:
        raise OptionError(f"The option `{name}` wants seconds, more than 0; not {str(value)[:200]!r}.")
    return float(value)


def _check_json(request: dict[str, object]) -> None:
    for name, value in request.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise OptionError(f"The option `{name}` does not take {str(value)[:200]!r}; see `Capture?`.") from None
    if len(json.dumps(request)) > REQUEST_LIMIT - 100:
        raise OptionError(
            f"The options are longer than the {REQUEST_LIMIT >> 10} KiB that a tracer takes. Name fewer functions, "
            "namespaces or interfaces; a pattern or a set says the same in less."
        )


def _list(values: object) -> object:
    """A list for JSON of what was meant as one; what makes no sense is refused by the tracer, with the other
    options."""
    return list(values) if isinstance(values, (tuple, set, frozenset)) else values


def _functions(functions: object) -> dict[str, object]:
    """A file of names is on this host, and not on the tracer's: its content is sent."""
    if isinstance(functions, os.PathLike) or (isinstance(functions, str) and functions.endswith((".txt", ".list"))):
        wish = read_list(functions)
        return {"functions": list(wish.names), "final": sorted(wish.final)}
    names = _list(functions)
    if names == []:
        raise OptionError(
            "`functions` is an empty list. Leave it out for the usual ones, or name some, or a set: default, all, "
            "drops."
        )
    return {"functions": names}


def _arm_limit() -> float:
    try:
        emulated = "QEMU" in Path("/proc/cpuinfo").read_text() or "TCG" in platform.processor()
    except OSError:
        emulated = False
    return ARM_WITHIN * (10 if emulated else 1)
