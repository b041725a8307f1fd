"""What a notebook shows for a comparison: its sentences, then the tables that they come from, folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from bpfpath_nb.html.table import table, text
from bpfpath_nb.io.findings import percent, span

if TYPE_CHECKING:
    from bpfpath_nb.analysis.alignment import Alignment
    from bpfpath_nb.comparison import Comparison

_MOST_ROWS: Final = 25
_MOST_HOPS: Final = 200


def comparison_html(comparison: Comparison) -> str:
    """A comparison as static HTML."""
    first, second = comparison.names
    parts = [
        f"<p><b>Comparison: {text(first)} (a) and {text(second)} (b)</b></p>",
        "<p>" + "<br>\n".join(text(line, 1000) for line in comparison.findings) + "</p>",
        _shares("verdicts", comparison.verdicts, ("verdict",), comparison.names),
        _shares("drops", comparison.drops, ("reason", "function", "netns"), comparison.names),
        _latencies("functions", comparison.functions, ("function",), comparison.names),
        _latencies("places", comparison.places, ("netns", "dev", "function"), comparison.names),
        _latencies("transitions", comparison.transitions, ("from", "to"), comparison.names),
        _shares("paths", comparison.paths, ("path",), comparison.names, ("hops", "verdict", "functions")),
    ]
    alignment = comparison.align()
    if alignment is not None:
        parts.append(
            _folded("the two paths that tell most of the difference", alignment_html(alignment, first, second))
        )
    return "<div>\n" + "\n".join(part for part in parts if part) + "\n</div>"


def alignment_html(alignment: Alignment, first: str, second: str) -> str:
    """Two paths side by side."""
    rows = []
    shown = alignment.frame.head(_MOST_HOPS)
    for row in shown.itertuples():
        mark = {"both": "", "a": "<", "b": ">"}[str(row.side)]
        in_a = [row.func, _place(row.netns_a, row.dev_a), _ns(row.gap_a)] if row.side != "b" else ["", "", ""]
        in_b = [row.func, _place(row.netns_b, row.dev_b), _ns(row.gap_b)] if row.side != "a" else ["", "", ""]
        rows.append([*in_a, mark, *in_b])
    rest = max(len(alignment) - len(shown), 0) + alignment.beyond
    more = f"<p>… and {rest} more hops</p>" if rest else ""
    head = (f"{first}: path {alignment.path_a}", "where", "median gap", "", f"{second}: path {alignment.path_b}")
    return table((*head, "where", "median gap"), rows) + more


def _place(netns: Any, dev: Any) -> str:
    return " ".join(str(part) for part in (netns, dev) if pd.notna(part))


def _shares(
    what: str, frame: pd.DataFrame, index: Sequence[str], names: tuple[str, str], more: Sequence[str] = ()
) -> str:
    rows = [
        [
            *_texts(key),
            f"{percent(row['share_a'])} ({row['packets_a']})",
            f"{percent(row['share_b'])} ({row['packets_b']})",
            f"{percent(row['difference'], '+')} [{percent(row['difference_low'], '+')}, "
            f"{percent(row['difference_high'], '+')}]",
            _p(row["share_p"]),
            row["change"],
            *(row[name] for name in more),
        ]
        for key, row in frame.head(_MOST_ROWS).iterrows()
        if row["packets_a"] or row["packets_b"]
    ]
    head = (*index, f"share of {names[0]}", f"share of {names[1]}", "difference [95 % CI]", "p", "change", *more)
    return _titled(what, frame, head, rows)


def _latencies(what: str, frame: pd.DataFrame, index: Sequence[str], names: tuple[str, str]) -> str:
    rows = [
        [
            *_texts(key),
            f"{row['packets_a']} / {row['packets_b']}",
            _ns(row["median_a"]),
            _ns(row["median_b"]),
            f"{_ns(row['shift'], '+')} [{_ns(row['shift_low'], '+')}, {_ns(row['shift_high'], '+')}]"
            if pd.notna(row["shift"])
            else "",
            _p(row["shift_p"]),
            row["change"],
        ]
        for key, row in frame.head(_MOST_ROWS).iterrows()
    ]
    head = (*index, "packets", f"median of {names[0]}", f"median of {names[1]}", "shift [95 % CI]", "p", "change")
    return _titled(what, frame, head, rows)


def _titled(what: str, frame: pd.DataFrame, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    if not len(frame):
        return ""
    claims = int((~frame["change"].isin(["same", "unclear"])).sum())
    rest = len(frame) - _MOST_ROWS
    more = f"<p>… and {rest} more in <code>.{what}</code></p>" if rest > 0 else ""
    return _folded(f"{what}: {len(frame)}, of which {claims} differ beyond chance", table(head, rows) + more)


def _folded(title: str, inner: str) -> str:
    return f"<details><summary>{text(title)}</summary>\n{inner}\n</details>"


def _texts(key: Any) -> list[str]:
    return ["" if pd.isna(part) else str(part) for part in (key if isinstance(key, tuple) else (key,))]


def _ns(value: Any, sign: str = "") -> str:
    return "" if pd.isna(value) else span(float(pd.Timedelta(value).value), sign)


def _p(value: float) -> str:
    return "not tested" if pd.isna(value) else f"{value:.2g}" if value >= 0.0001 else "< 0.0001"
