"""`compare_widget(a, b)`: choose two sides, and see what differs.

The sides are two recordings, or two parts of one: namespaces, paths, packets. Every choice makes one call of
`compare`; its result is the attribute `comparison`.
"""

from __future__ import annotations

from typing import Any

import ipywidgets

from bpfpath_nb.comparison import Comparison, compare
from bpfpath_nb.errors import BpfpathError, OptionError
from bpfpath_nb.html.comparison import alignment_html
from bpfpath_nb.recording import RecordingViews
from bpfpath_nb.widgets.panel import Panel, Snapshot, problem

_MOST_PATHS = 200


class Comparer(Panel):
    """Two sides to choose, and their comparison. Made by `compare_widget`.

    Attributes
    ----------
    comparison : Comparison or None
        Of the present choice; None where it cannot be made, and the panel says why.
    """

    def __init__(self, a: RecordingViews, b: RecordingViews | None = None, of: str | None = None) -> None:
        self.a = a.recording
        self.b = None if b is None else b.recording
        self.comparison: Comparison | None = None
        self._offering = False  # while choices are set, nothing is compared
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

    def snapshot(self) -> Snapshot:
        """The present comparison as static HTML."""
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
        other = self.b or self.a
        self.comparison, self._error.value, self._aligned.value = None, "", ""
        self._told.value = "<p>comparing …</p>"  # seen at once; large recordings take a moment
        try:
            if of == "recordings":
                found = compare(self.a, self.b)
            elif a is None or b is None:
                raise OptionError(f"There are no {of} to choose from.")
            elif of == "namespaces":
                found = compare(self.a, other, netns=(a, b), names=_names(a, b))
            elif of == "packets":
                found = compare(self.a, other, packets=(a, b), names=_names(f"packet {a}", f"packet {b}"))
            else:
                packets = [
                    recording.packets[recording.packets["path"] == path]
                    for recording, path in ((self.a, a), (other, b))
                ]
                found = compare(self.a, other, packets=(packets[0], packets[1]), names=_names(a, b))
            aligned = found.align()
            told = found._repr_html_()
        except BpfpathError as error:
            self._error.value, self._told.value = problem(error), ""
            return
        self.comparison, self._told.value = found, told
        if aligned is not None:
            self._aligned.value = alignment_html(aligned, *found.names)


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
