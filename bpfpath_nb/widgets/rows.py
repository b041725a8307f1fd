"""A frame as a list that can be sorted, narrowed down, paged through and chosen from.

Only the rows of one page ever become text; sorting and narrowing are done on whole columns. The list itself is a
`Select`: it is moved through with the arrow keys, and any browser shows it. Its lines are columns of a fixed width,
padded with spaces that do not collapse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import ipywidgets
import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis.selection import holding
from bpfpath_nb.errors import BpfpathError
from bpfpath_nb.html.frame import cells, frame_html
from bpfpath_nb.html.table import text
from bpfpath_nb.widgets.panel import problem

PAGE: Final = 12
_WIDEST: Final = 44
_GAP: Final = "\u00a0\u00a0"
_STYLE = (
    "<style>.bpfpath-rows select, .bpfpath-rows pre {font-family: var(--jp-code-font-family, monospace); "
    "font-size: 12px} "
    ".bpfpath-rows pre {margin: 0 0 0 3px; font-weight: bold; white-space: pre; overflow: hidden}</style>"
)

Narrow = Callable[[str], npt.NDArray[np.bool_]]


class Rows(ipywidgets.VBox):  # type: ignore[misc]
    """Rows of a frame to choose one from.

    Parameters
    ----------
    frame : DataFrame
    columns : sequence of str
        Which of its columns are shown, after the index.
    choose : callable
        Called with the position in `frame` of the row that was chosen.
    narrow : callable, optional
        Takes the text of the filter, gives for each row whether it stays. By default a query over the columns.
    hint : str
        What stands in the empty filter.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        columns: Sequence[str],
        choose: Callable[[int], None],
        narrow: Narrow | None = None,
        hint: str = "a query over the columns",
        page: int = PAGE,
    ) -> None:
        self._columns, self._choose, self._size = list(columns), choose, page
        self._narrow = narrow or (lambda query: holding(self.frame, query))
        self._keep = ipywidgets.Text(placeholder=hint, continuous_update=False, layout={"width": "26em"})
        self._sort = ipywidgets.Dropdown(
            description="sort by", layout={"width": "16em"}, style={"description_width": "4em"}
        )
        self._down = ipywidgets.ToggleButton(description="largest first", layout={"width": "9em"})
        self._back, self._on = (ipywidgets.Button(description=name, layout={"width": "3em"}) for name in ("<", ">"))
        self._where, self._error, self._head = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self._list = ipywidgets.Select(rows=page, layout={"width": "99%"})
        self._at = 0
        for control in (self._keep, self._sort, self._down):
            control.observe(lambda _: self._arrange(), "value")
        self._list.observe(lambda change: self._chosen(change["new"]), "value")
        self._back.on_click(lambda _: self._turn(-1))
        self._on.on_click(lambda _: self._turn(1))
        super().__init__(
            [
                ipywidgets.HTML(_STYLE),
                ipywidgets.HBox(
                    [self._keep, self._sort, self._down, self._back, self._on, self._where],
                    layout={"flex_flow": "row wrap"},
                ),
                self._error, self._head, self._list,
            ]
        )  # fmt: skip
        self.add_class("bpfpath-rows")
        self.show(frame)

    def show(self, frame: pd.DataFrame) -> None:
        """Take another frame of the same columns."""
        self.frame = frame
        self._sort.options = [("as recorded", ""), *((name, name) for name in self._columns)]
        self._arrange()

    @property
    def shown(self) -> pd.DataFrame:
        """The rows of the present page, in their order."""
        return self.frame[self._columns].iloc[self._page]

    @property
    def _page(self) -> npt.NDArray[np.intp]:
        return self._order[self._at : self._at + self._size]

    def filter(self, expression: str) -> None:
        """Narrow down, as if it had been typed."""
        self._keep.value = expression

    def html(self) -> str:
        """The present page as static HTML."""
        kept = f", where {self._keep.value}" if self._keep.value and not self._error.value else ""
        order = f", by {self._sort.value}{' (largest first)' if self._down.value else ''}" if self._sort.value else ""
        told = f"<p>{text(self._where.value + kept + order, 400)}</p>"
        return f"{self._error.value}{told}" + frame_html(self.shown, self._size)

    def _arrange(self) -> None:
        """Narrow down and sort anew, and go to the first page."""
        self._error.value = ""
        keep = np.ones(len(self.frame), bool)
        if self._keep.value.strip():
            try:
                keep = self._narrow(self._keep.value.strip())
            except BpfpathError as error:
                self._error.value = problem(error)
        self._order = np.flatnonzero(keep)
        if self._sort.value:
            keys = _keys(self.frame[self._sort.value])[self._order]
            self._order = self._order[np.argsort(-keys if self._down.value else keys, kind="stable")]
        elif self._down.value:
            self._order = self._order[::-1]
        self._at = 0
        self._fill()

    def _turn(self, pages: int) -> None:
        last = max(len(self._order) - 1, 0) // self._size * self._size
        self._at = min(max(self._at + pages * self._size, 0), last)
        self._fill()

    def _fill(self) -> None:
        head, lines = _lines(self.shown)
        self._head.value = f"<pre>{text(head, 400)}</pre>" if lines else "<p>no rows</p>"
        total = len(self._order)
        beyond = f" (of {len(self.frame)} in all)" if total < len(self.frame) else ""
        first = self._at + 1 if total else 0
        self._where.value = f"{first} to {min(self._at + self._size, total)} of {total}{beyond}"
        self._back.disabled, self._on.disabled = self._at == 0, self._at + self._size >= total
        # First nothing is chosen: with a choice, other options would choose their first one by themselves.
        self._list.value = None
        self._list.options = list(zip(lines, self._page.tolist(), strict=True))

    def _chosen(self, row: Any) -> None:
        if row is not None:
            self._choose(int(row))


def _keys(column: pd.Series) -> npt.NDArray[np.float64]:
    """Numbers in the order of the values; what is missing comes last."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = np.array([str(name) for name in column.cat.categories], object)
        rank = np.empty(len(names) + 1)
        rank[np.argsort(names)] = np.arange(len(names))
        rank[-1] = np.nan
        return rank[column.cat.codes.to_numpy()]
    if column.dtype.kind in "mM":
        return np.where(column.isna(), np.nan, column.astype("int64").to_numpy())
    if column.dtype.kind in "iufb":
        return column.to_numpy(float, na_value=np.nan)
    return pd.Series(pd.factorize(column, sort=True)[0]).replace(-1, np.nan).to_numpy(float)


def _lines(page: pd.DataFrame) -> tuple[str, list[str]]:
    """The page as lines of text of equal columns, under a head line."""
    index = page.index.to_frame(index=False) if not isinstance(page.index, pd.RangeIndex) else pd.DataFrame()
    columns = [*(index[name] for name in index.columns), *(page[name] for name in page.columns)]
    padded = []
    for column in columns:
        unit = "/us" if column.dtype.kind == "m" else ""
        values = [value if len(value) <= _WIDEST else value[: _WIDEST - 1] + "…" for value in cells(column)]
        width = max(map(len, [str(column.name) + unit, *values]))
        right = column.dtype.kind in "iufm"
        padded.append(
            [value.rjust(width) if right else value.ljust(width) for value in [str(column.name) + unit, *values]]
        )
    head, *lines = [_GAP.join(row).replace(" ", "\u00a0") for row in zip(*padded, strict=True)]
    return head, lines
