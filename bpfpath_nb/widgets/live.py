"""`live("udp port 53")`: a capture with a start and a stop button, and what it sees as it comes.

A capture is armed, watched and stopped in a thread of the panel's, so the notebook goes on working meanwhile. Counters
are cheap to read and shown twice a second. The last packets and drops need the whole picture to be put together; that
is done again only after a rest of four times what it took, so a long capture is not slowed down by being watched.

What is typed into the filter is compiled a moment after the last key, in a thread too: the resolver may be asked for
the name of a host, and that may take its time.

Front ends count the views of a widget that they show (`_view_count`). When the last one is gone, because the output was
cleared, the cell was run again or the notebook closed, nobody could stop the capture any more, so it ends. A page that
is loaded anew does not tell that its views went; the capture then goes on until it is stopped or the kernel ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import ipywidgets

from bpfpath_nb.capture import Capture
from bpfpath_nb.errors import BpfpathError, OptionError, RequirementError
from bpfpath_nb.filter import Filter
from bpfpath_nb.html.frame import frame_html
from bpfpath_nb.html.summary import packets_html
from bpfpath_nb.html.table import facts, warning
from bpfpath_nb.io.text import loss_lines
from bpfpath_nb.widgets.panel import Panel, Snapshot, problem

_EVERY: Final = 0.5
_REST: Final = 4.0
_AFTER_KEY: Final = 0.3
_LAST_PACKETS: Final = 10
_LAST_DROPS: Final = 5
_CLOSE_WITHIN: Final = 30.0
_UNSEEN_FOR: Final = 2.0
"""Seconds; a view that is moved goes, and comes again."""
_DROPS = ["time", "packet", "reason", "func", "netns", "dev", "flow"]


class Live(Panel):
    """A capture to start and stop. Made by `live`.

    Attributes
    ----------
    capture : Capture or None
        The present one, or the last.
    """

    def __init__(self, filter: str, options: dict[str, Any]) -> None:  # noqa: A002 - as in Capture
        self.capture: Capture | None = None
        self._options = options
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._timer: threading.Timer | None = None
        self._unseen: threading.Timer | None = None
        self._filter = ipywidgets.Text(value=filter, placeholder="every packet", description="filter")
        self._start = ipywidgets.Button(description="start", icon="play")
        self._end = ipywidgets.Button(description="stop", icon="stop", disabled=True)
        self._bar = ipywidgets.FloatProgress(min=0.0, max=1.0, layout={"visibility": "hidden"})
        self._error, self._state, self._seen = (ipywidgets.HTML() for _ in range(3))
        super().__init__(
            [ipywidgets.HBox([self._filter, self._start, self._end, self._bar]), self._error, self._state, self._seen]
        )
        self._view_count = 0  # a number asks front ends to count
        self.observe(lambda _: self._seen_or_not(), "_view_count")
        self._filter.observe(lambda _: self._typed(), "value")
        self._start.on_click(lambda _: self.start())
        self._end.on_click(lambda _: self.stop(wait=False))
        self._check(filter)

    def start(self) -> None:
        """Arm a capture with the filter that stands there. Returns at once; what goes wrong is told in the panel."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop.clear()
        self._start.disabled, self._filter.disabled, self._end.disabled = True, True, False
        self._error.value, self._seen.value, self._state.value = "", "", facts([("state", "arming")])
        self._thread = threading.Thread(target=self._run, name="bpfpath_nb live", daemon=True)
        self._thread.start()

    def stop(self, wait: bool = True) -> None:
        """Stop the capture and detach everything; what was captured stays, in `capture`."""
        self._stop.set()
        if wait and self._thread is not None:
            self._thread.join(_CLOSE_WITHIN)

    def close(self) -> None:
        """Stop, detach, and take the panel away."""
        for timer in (self._timer, self._unseen):
            if timer is not None:
                timer.cancel()
        self.stop()
        super().close()

    def _frozen(self) -> Snapshot:
        said = self._filter.value or "every packet"
        parts = [facts([("live", said)]), self._error.value, self._state.value, self._seen.value]
        return Snapshot("<div>\n" + "\n".join(parts) + "\n</div>", f"live({said!r}): {self.capture or 'not started'}")

    def _typed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = _later(_AFTER_KEY, self._check, self._filter.value)

    def _seen_or_not(self) -> None:
        if self._unseen is not None:
            self._unseen.cancel()
        self._unseen = None if self._view_count else _later(_UNSEEN_FOR, self.stop, False)

    def _check(self, expression: str) -> None:
        error: object = ""
        try:
            Filter(expression)
        except RequirementError:
            pass  # no libpcap here; the tracer will tell
        except BpfpathError as found:
            error = found
        if expression == self._filter.value:
            self._error.value, self._start.disabled = problem(error), bool(error)

    def _run(self) -> None:
        try:
            capture = self.capture = Capture(self._filter.value, **self._options)
        except BpfpathError as error:
            self._error.value, self._state.value = problem(error), facts([("state", "not started")])
        else:
            try:
                self._watch(capture)
            finally:
                capture.stop()
            self._show(capture, 0.0, 0.0)
            self._look(capture)
        finally:
            self._start.disabled, self._filter.disabled, self._end.disabled = False, False, True
            self._show_anew()

    def _watch(self, capture: Capture) -> None:
        before, look_at = capture.status, 0.0
        while capture.status.state == "capturing" and not self._stop.wait(_EVERY):
            status = capture.status
            passed = max(status.seconds - before.seconds, 1e-3)
            self._show(capture, (status.packets - before.packets) / passed, (status.events - before.events) / passed)
            if (now := time.monotonic()) >= look_at and status.events != before.events:
                self._look(capture)
                look_at = time.monotonic() + _REST * (time.monotonic() - now)
            before = status

    def _show(self, capture: Capture, packets: float, hops: float) -> None:
        status, options = capture.status, capture.start.options
        self._state.value = facts(
            [
                ("state", status),
                ("rate", f"{packets:.0f} packets/s, {hops:.0f} hops/s"),
                ("lost", f"{status.lost} events"),
            ]
        )
        limits = [(status.seconds, options.get("duration")), (status.packets, options.get("packets"))]
        parts = [done / limit for done, limit in limits if limit]
        self._bar.layout.visibility = "visible" if parts else "hidden"
        self._bar.value = min(max(parts, default=0.0), 1.0) if status.state == "capturing" else 1.0

    def _look(self, capture: Capture) -> None:
        recording = capture.recording
        drops = recording.drops
        parts = [warning(loss_lines(recording))]
        if len(recording):
            parts += ["<p><b>last packets</b></p>", packets_html(recording.packets.tail(_LAST_PACKETS)[::-1])]
        if len(drops):
            told = f"<p><b>last drops</b> (of {len(drops)})</p>"
            parts += [told, frame_html(drops[_DROPS].tail(_LAST_DROPS)[::-1].reset_index(drop=True))]
        self._seen.value = "\n".join(parts)


def live(filter: str = "", **options: Any) -> Live:  # noqa: A002 - as in Capture
    """Start and stop a capture by hand, and see what it sees as it comes.

    Parameters
    ----------
    filter : str
        An expression of pcap-filter(7); it can be changed in the panel.
    **options
        Those of `Capture`.

    Returns
    -------
    Live
        A widget. Its attribute `capture` is the capture; `close()` stops it and detaches everything, `snapshot()`
        freezes the view into static HTML.
    """
    unknown = set(options) - _options()
    if unknown:
        raise OptionError(f"`live` has the options of `Capture`; {', '.join(sorted(unknown))} is none of them.")
    return Live(filter, options)


def _later(seconds: float, act: Callable[..., None], *arguments: Any) -> threading.Timer:
    timer = threading.Timer(seconds, act, arguments)
    timer.daemon = True
    timer.start()
    return timer


def _options() -> set[str]:
    import inspect

    return set(inspect.signature(Capture).parameters)
