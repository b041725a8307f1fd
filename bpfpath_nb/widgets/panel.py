"""What all panels have in common: they can be frozen, and they leave HTML in a saved notebook.

A saved widget is a reference to a model in a kernel that is gone. So each panel adds its present view as `text/html`
to its own output; viewers that have no widgets (nbconvert, GitHub) show that. JupyterLab prefers the dead reference,
which is why there is `snapshot()` too. Where a panel is shown before it has what it is to show (a comparison that takes
its time, a capture), it adds the view anew once that is there.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import ipywidgets
from IPython.display import DisplayHandle, display

from bpfpath_nb.html.table import text


@dataclass(frozen=True)
class Snapshot:
    """A view, frozen: static HTML in a notebook, text in a terminal."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Panel(ipywidgets.VBox):  # type: ignore[misc]
    """A widget whose present view can be had as static HTML."""

    _output: DisplayHandle | None = None

    def snapshot(self) -> Snapshot:
        """The present view as static HTML. As the last line of a cell it stays in the saved notebook."""
        return self._frozen()

    def _frozen(self) -> Snapshot:
        """What is there now; nothing is waited for."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs)
        frozen = self._frozen()
        return bundle | {"text/plain": frozen.text, "text/html": frozen.html}

    def _ipython_display_(self, **_: Any) -> None:
        # Only an output that has an id can be added to later.
        self._output = display(self._repr_mimebundle_(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def _show_anew(self) -> None:
        """Have the saved notebook tell what the panel shows by now."""
        if self._output is not None:
            self._output.update(self._repr_mimebundle_(), raw=True)  # type: ignore[no-untyped-call]


def image(png: bytes) -> str:
    """A PNG as HTML that needs no file."""
    return f'<p><img src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>' if png else ""


def problem(error: object) -> str:
    """A mistake of the user's, told beside the control that it was made in."""
    return f'<pre style="border-left:4px solid #d55e00;padding:2px 8px">{text(error, 600)}</pre>' if str(error) else ""
