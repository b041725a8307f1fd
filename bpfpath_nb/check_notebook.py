"""Does a saved notebook still show everything where nothing runs?

Most people see a notebook saved: on GitHub, in nbviewer, in mail, in a tab that is not trusted. No JavaScript runs
there and no kernel answers. What an output must have to be seen then:

- not a widget alone. A widget's view is a reference to a model in a kernel that is gone. Beside it there must be HTML
  or an image, and the notebook must not hold the widget's state: viewers that find it (nbconvert, JupyterLab) take the
  view, and run JavaScript for it, in place of the HTML.
- not JavaScript, as an output of its own or as a script in HTML.
- all of it. A frame or an image that is a file beside the notebook is empty on any other machine.
- not too large: GitHub gives up on large notebooks, and people on scrolling.

A notebook is a JSON file by anybody; it is only read here, and what is quoted from it is made printable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bpfpath_nb.errors import NotebookError
from bpfpath_nb.printable import printable

LIMIT: Final = 200_000
"""How large one output may be, in bytes as stored."""

WIDGET: Final = "application/vnd.jupyter.widget-view+json"

_NEEDS_JAVASCRIPT = ("application/javascript", "application/vnd.", "text/javascript")
_SOURCES = {"iframe": "src", "img": "src", "embed": "src", "object": "data", "video": "src", "audio": "src",
            "source": "src", "link": "href"}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One output that not everybody can see."""

    cell: int
    """position of the cell in the notebook, from 1"""
    output: int
    """position of the output in its cell, from 1"""
    what: str

    def __str__(self) -> str:
        return f"cell {self.cell}, output {self.output}: {self.what}"


def check_notebook(path: str | os.PathLike[str], limit: int = LIMIT) -> list[Problem]:
    """What cannot be seen of a notebook where no JavaScript runs.

    Parameters
    ----------
    path : str or PathLike
        A notebook of format 4 (`.ipynb`).
    limit : int
        How large an output may be, in bytes.

    Returns
    -------
    list of Problem
        In the notebook's order; empty where all is well.

    Raises
    ------
    NotebookError
        The file is no notebook.
    OSError
        There is no such file, or it may not be read.
    """
    try:
        notebook = json.loads(Path(path).read_bytes())
        return [
            Problem(cell_at, output_at, what)
            for cell_at, cell in enumerate(notebook["cells"], 1)
            for output_at, output in enumerate(cell.get("outputs", ()), 1)
            for what in _problems(output, _saved_models(notebook), limit)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NotebookError(
            f"{printable(str(path))} is no notebook of format 4. Open it in JupyterLab and save it again."
        ) from None


def _saved_models(notebook: dict[str, Any]) -> set[str]:
    """The widgets whose state is kept in the notebook."""
    kept = notebook.get("metadata", {}).get("widgets", {})
    return {str(model) for kind in kept.values() for model in kind.get("state", {})}


def _problems(output: dict[str, Any], saved: set[str], limit: int) -> Iterator[str]:
    size = len(json.dumps(output.get("data", output.get("text", "")), ensure_ascii=False).encode())
    if size > limit:
        yield (
            f"it has {size / 1000:.0f} KB, more than {limit / 1000:.0f} KB. Show less of it: `head()`, a plot of fewer "
            "packets, or a file beside the notebook"
        )
    data = output.get("data", {})
    static = any(kind == "text/html" or kind.startswith("image/") for kind in data)
    for kind in data:
        if kind == WIDGET and data[kind].get("model_id") in saved:
            yield (
                "the state of its widget is saved in the notebook, so viewers run JavaScript for it. Save without it: "
                "in JupyterLab's Settings, Save Widget State Automatically must be off"
            )
        elif kind == WIDGET and not static:
            yield "it is a widget and nothing else: call its `snapshot()`, which leaves HTML"
        elif kind.startswith(_NEEDS_JAVASCRIPT) and not static:
            yield f"only JavaScript can show it ({printable(kind)}): add an image or HTML without scripts"
    page = _Page()
    page.feed(_joined(data.get("text/html", "")))
    page.close()
    if page.scripts:
        yield "its HTML has a script, which does not run in a saved notebook: leave HTML that needs none"
    for tag, source in page.local:
        yield f"its <{tag}> shows the local file {printable(source, 80)!r}, which others do not have: put it inside"


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


class _Page(HTMLParser):
    """What HTML needs that a saved notebook does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = False
        self.local: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts |= tag == "script"
        source = dict(attrs).get(_SOURCES.get(tag, ""))
        if source and urlsplit(source).scheme not in ("http", "https", "data", "about"):
            self.local.append((tag, source))
