"""How a notebook shows the durations in a frame.

pandas writes each of them with its days, hours and nine digits after the second, `0 days 00:00:00.000012345`, and has
no option for it. What packets take is a matter of microseconds, and there one counts zeros. So `%load_ext bpfpath_nb`
tells IPython how to show a DataFrame that has durations: as pandas does, with pandas' options for how many rows and
columns, but a duration below an hour as `12.345 us`. No digit is lost, and within a column they can be compared.

Only what a cell shows is changed: not the frame, not its dtypes, not `print` or what is exported. A formatter that the
user has set for frames is left alone.
"""

from __future__ import annotations

from typing import Any, Final

import pandas as pd

_HOUR: Final = 3600 * 10**9


def register(shell: Any) -> None:
    """Show durations in microseconds from now on."""
    for mime, show in _SHOWN.items():
        formatter = shell.display_formatter.formatters[mime]
        if pd.DataFrame not in formatter:
            formatter.for_type(pd.DataFrame, show)


def unregister(shell: Any) -> None:
    """Leave it to pandas again."""
    for mime, show in _SHOWN.items():
        formatter = shell.display_formatter.formatters[mime]
        if formatter.type_printers.get(pd.DataFrame) is show:
            formatter.pop(pd.DataFrame)


def microseconds(duration: Any) -> str:
    """A duration as frames show it; from an hour on, and what is missing, as pandas does."""
    if pd.isna(duration) or abs(ns := pd.Timedelta(duration).as_unit("ns").value) >= _HOUR:
        return str(duration)
    return f"{ns / 1000:,.3f} us"


def _options(frame: pd.DataFrame) -> dict[str, Any]:
    """What pandas is to be told to show the frame as it would by itself, with durations in microseconds."""
    most, least = pd.get_option("display.max_rows"), pd.get_option("display.min_rows")
    is_long = most and len(frame) > most
    return {
        "max_rows": min(most, least or most) if is_long else None,
        "max_cols": pd.get_option("display.max_columns"),
        "show_dimensions": pd.get_option("display.show_dimensions"),
        "formatters": dict.fromkeys(_durations(frame), microseconds),
    }


def _durations(frame: pd.DataFrame) -> list[Any]:
    return [name for name, dtype in frame.dtypes.items() if dtype.kind == "m"]


def _is_ours(frame: pd.DataFrame) -> bool:
    # pandas takes formatters by the name of the column.
    named = frame.columns.is_unique and bool(_durations(frame))
    return named and pd.get_option("display.large_repr") == "truncate"


def _html(frame: pd.DataFrame) -> str | None:
    if not _is_ours(frame) or not pd.get_option("display.notebook_repr_html"):
        shown: str | None = frame._repr_html_()  # type: ignore[operator]
        return shown
    html: str = frame.to_html(**_options(frame), notebook=True)
    return html


def _text(frame: pd.DataFrame, printer: Any, cycle: bool) -> None:
    if not _is_ours(frame):
        printer.text(repr(frame))
        return
    width = pd.get_option("display.width") if pd.get_option("display.expand_frame_repr") else None
    widest = pd.get_option("display.max_colwidth")
    printer.text(frame.to_string(**_options(frame), line_width=width, max_colwidth=widest))


_SHOWN: Final = {"text/html": _html, "text/plain": _text}
