"""`compare_widget(a, b)`: choose two sides, and see what differs.

The sides are two recordings, or two parts of one: namespaces, paths, packets. Every choice makes one call of
`compare`; its result is the attribute `comparison`. Where that takes longer than a reaction may, because there are
many hops, it is made in a thread, and the panel tells how far it is. The notebook and the panel go on working; a new
choice takes the place of one that is not made yet. That holds of the first one too: the panel is there before it.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import ipywidgets

from bpfpath_nb.comparison import Comparison, compare
from bpfpath_nb.errors import BpfpathError, OptionError
from bpfpath_nb.html.comparison import alignment_html
from bpfpath_nb.recording import RecordingViews
from bpfpath_nb.widgets.panel import Panel, Snapshot, problem

_MOST_PATHS = 200

_AT_ONCE: Final = 250_000
"""Of up to so many hops a comparison is made at once: that takes about half a second of processor time."""

_TABLES: Final = ("verdicts", "paths", "functions", "transitions", "places", "drops")


class Comparer(Panel):
    """Two sides to choose, and their comparison. Made by `compare_widget`.

    Attributes
    ----------
    comparison : Comparison or None
        Of the present choice; None where it cannot be made, and the panel says why, and while it is made in a thread.
    """

    def __init__(self, a: RecordingViews, b: RecordingViews | None = None, of: str | None = None) -> None:
        self.a = a.recording
        self.b = None if b is None else b.recording
        self.comparison: Comparison | None = None
        self._offering = False  # while choices are set, nothing is compared
        self._thread: threading.Thread | None = None
        self._choice = 0  # counts up; what was found of an earlier one is not shown
        self._one_by_one, self._telling = threading.Lock(), threading.Lock()
        choices = (["recordings"] if self.b is not None else []) + ["namespaces", "paths", "packets"]
        if of is not None and of not in choices:
            raise OptionError(f"What can be compared here: {', '.join(choices)}; not {of!r}.")
        self._of = ipywidgets.ToggleButtons(options=choices, value=of or choices[0], description="compare")
        self._sides = [ipywidgets.Dropdown(description=name, layout={"width": "30em"}) for name in ("a", "b")]
        self._numbers = [ipywidgets.IntText(description=name, continuous_update=False) for name in ("a", "b")]
        self._pair = ipywidgets.HBox()
        self._error, self._told, self._aligned = (ipywidgets.HTML() for _ in range(3))
        self._parts = ipywidgets.Tab([self._told, self._aligned], titles=["what differs", "alignment"])
        super().__init__([self._of, self._pair, self._error, self._parts])
        self._of.observe(lambda _: None if self._offering else self._offer(), "value")
        for side in (*self._sides, *self._numbers):
            side.observe(lambda _: self._hold_together(), "value")
        self._offer()

    def choose(self, of: str, a: str | int | None = None, b: str | int | None = None) -> None:
        """Compare something else, as if it had been clicked: "recordings", "namespaces", "paths" or "packets"."""
        self._offering = True
        self._of.value = of
        self._offer(then_compare=False)
        self._offering = True
        for side, value in zip(self._inputs, (a, b), strict=True):
            if value is not None:
                side.value = value
        self._offering = False
        self._hold_together()

    def finished(self, within: float | None = None) -> bool:
        """Wait until the present choice has been compared, at most so many seconds; tell whether it has."""
        if self._thread is not None:
            self._thread.join(within)
        return self._thread is None or not self._thread.is_alive()

    def snapshot(self) -> Snapshot:
        """The present comparison as static HTML; waits for it where it is still made."""
        self.finished()
        return self._frozen()

    def _frozen(self) -> Snapshot:
        html = f"<div>\n{self._error.value}{self._told.value}\n</div>"
        return Snapshot(html, repr(self.comparison) if self.comparison else "nothing is compared")

    @property
    def _inputs(self) -> list[Any]:
        return self._numbers if self._of.value == "packets" else self._sides

    def _offer(self, then_compare: bool = True) -> None:
        """Offer what there is to choose from; by default the first of a and the next of b."""
        of, recordings = self._of.value, (self.a, self.b or self.a)
        self._pair.children = [] if of == "recordings" else self._inputs
        self._offering = True
        for at, (side, recording) in enumerate(zip(self._inputs, recordings, strict=True)):
            second = at if self.b is None else 0
            if of == "packets":
                side.value = [0, *recording.packets.index[: second + 1].tolist()][-1]
            elif of != "recordings":
                side.options = options = _namespaces(recording) if of == "namespaces" else _paths(recording)
                side.value = options[min(second, len(options) - 1)][1] if options else None
        self._offering = False
        if then_compare:
            self._hold_together()

    def _hold_together(self) -> None:
        if self._offering:
            return
        of, (a, b) = self._of.value, (side.value for side in self._inputs)
        with self._telling:
            self._choice += 1
            choice = self._choice
            self.comparison, self._error.value, self._aligned.value = None, "", ""
            self._told.value = "<p>comparing …</p>"  # seen at once; large recordings take a moment
        self._thread = None
        # Two packets touch few hops, and what is found of whole recordings is kept for them.
        if of == "packets" or len(self.a) + len(self.b or self.a) <= _AT_ONCE:
            self._hold(choice, of, a, b)
            return
        self._thread = threading.Thread(
            target=self._hold_in_turn, args=(choice, of, a, b), name="bpfpath_nb compare", daemon=True
        )
        self._thread.start()

    def _hold_in_turn(self, choice: int, of: str, a: Any, b: Any) -> None:
        """As `_hold`, in a thread, once the one for the choice before has noticed that it is not asked for any more."""
        with self._one_by_one:
            if choice == self._choice:
                self._hold(choice, of, a, b)
            if choice == self._choice:
                self._show_anew()

    def _hold(self, choice: int, of: str, a: Any, b: Any) -> None:
        """Compare and show it, unless there is another choice by then."""
        try:
            found = self._found(of, a, b)
            for at, table in enumerate(_TABLES, 1):
                getattr(found, table)
                if choice != self._choice:
                    return
                self._tell(choice, f"<p>comparing … {table} ({at} of {len(_TABLES)})</p>")
            aligned, told = found.align(), found._repr_html_()
        except BpfpathError as error:
            self._tell(choice, "", problem(error))
            return
        except Exception as error:
            # Of a thread nobody sees the traceback.
            self._tell(choice, "", problem(f"This could not be compared: {type(error).__name__}: {error}"))
            raise
        with self._telling:
            if choice == self._choice:
                self.comparison, self._told.value = found, told
                self._aligned.value = "" if aligned is None else alignment_html(aligned, *found.names)

    def _tell(self, choice: int, told: str, error: str = "") -> None:
        with self._telling:
            if choice == self._choice:
                self._told.value, self._error.value = told, error

    def _found(self, of: str, a: Any, b: Any) -> Comparison:
        other = self.b or self.a
        if of == "recordings":
            return compare(self.a, self.b)
        if a is None or b is None:
            raise OptionError(f"There are no {of} to choose from.")
        if of == "namespaces":
            return compare(self.a, other, netns=(a, b), names=_names(a, b))
        if of == "packets":
            return compare(self.a, other, packets=(a, b), names=_names(f"packet {a}", f"packet {b}"))
        one, two = (
            recording.packets[recording.packets["path"] == path] for recording, path in ((self.a, a), (other, b))
        )
        return compare(self.a, other, packets=(one, two), names=_names(a, b))


def _names(a: object, b: object) -> tuple[str, str]:
    return (str(a), str(b)) if a != b else (f"{a} (a)", f"{b} (b)")


def _namespaces(recording: RecordingViews) -> list[tuple[str, str]]:
    return [(f"{name} ({row['packets']} packets)", str(name)) for name, row in recording.namespaces.iterrows()]


def _paths(recording: RecordingViews) -> list[tuple[str, str]]:
    return [
        (f"{path} ({row['packets']} packets, {row['hops']} hops, {row['verdict']})", str(path))
        for path, row in recording.paths.head(_MOST_PATHS).iterrows()
    ]


def compare_widget(a: RecordingViews, b: RecordingViews | None = None) -> Comparer:
    """Choose two sides by hand, and see what differs between them.

    Parameters
    ----------
    a : Recording or Capture
    b : Recording or Capture, optional
        Without it the sides are namespaces, paths or packets of `a`.

    Returns
    -------
    Comparer
        A widget. Its attribute `comparison` is what `compare` found; `snapshot()` freezes the view into static HTML.
    """
    return Comparer(a, b)
