"""A recording as one page to send around: summary, diagnosis, pictures and tables, in a file of its own.

No script and no outside address: what is in the file is all there is, and it reads the same in ten years. Pictures are
in the page as data, each for a light and a dark screen; paper gets the light ones. The page's own style is one sheet
at its top, and says what printing changes: what is folded is printed open, and no row or picture is cut in two.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from bpfpath_nb.html.diagnosis import diagnosis_html
from bpfpath_nb.html.frame import frame_html
from bpfpath_nb.html.summary import packets_html, quality_html
from bpfpath_nb.html.table import details, facts, preformatted, table, text, warning
from bpfpath_nb.io.replace import replacing
from bpfpath_nb.io.summary import counted, drop_counts
from bpfpath_nb.io.text import loss_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfpath_nb.recording import Recording

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --paper: #ffffff; --line: #d9d9de; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --soft: #a6abb3; --paper: #111418; --line: #363c46; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
img { display: block; width: 100%; max-width: 900px; height: auto; margin: .6rem 0 1.2rem; }
.wide { overflow-x: auto; }
table { font-size: 13px; border-color: var(--line); }
th, td { border-color: var(--line); vertical-align: top; }
pre { font-size: 12px; overflow-x: auto; }
nav a { color: inherit; margin-right: 1rem; }
footer { color: var(--soft); margin-top: 3rem; font-size: 13px; }
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .wide, pre { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { white-space: normal !important; min-width: 0 !important; padding: 1px 4px !important;
    overflow-wrap: break-word; }
  pre { font-size: 7pt; white-space: pre-wrap; }
  h2, h3, summary { break-after: avoid; }
  picture { display: block; break-before: avoid; }
  tr, picture, img { break-inside: avoid; }
  img { max-height: 225mm; width: auto; max-width: 100%; }
  thead { display: table-header-group; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""

_PACKETS: Final = 50
_ROWS: Final = 40
_EXAMPLES: Final = 4


def write_report(recording: Recording, path: Path, title: str | None = None) -> Path:
    """Write the page; an existing file is replaced in one step.

    Returns
    -------
    Path
        Where it is.
    """
    page = report_html(recording, title)
    with replacing(path.expanduser()) as file:
        file.write(page.encode())
    return path


def report_html(recording: Recording, title: str | None = None) -> str:
    """A whole page of HTML."""
    start = recording.start
    head = title or f"bpfpath_nb: {start.filter or 'every packet'} on {start.host or 'an unnamed host'}"
    sections = list(_sections(recording))
    links = "".join(f'<a href="#s{at}">{text(name)}</a>' for at, (name, _) in enumerate(sections))
    body = "\n".join(
        f'<section id="s{at}"><h2>{text(name)}</h2>\n{inner}\n</section>' for at, (name, inner) in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may be fetched or run, whatever a value in the page were to say.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{text(head)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{text(head)}</h1>\n{_summary(recording)}\n<nav>{links}</nav>\n{body}\n"
        f"<footer>Made by bpfpath_nb {text(start.tool)} from a recording of {len(recording):,} hops. "
        "<code>Recording.load(...)</code> opens the recording itself.</footer>\n</body>\n</html>\n"
    )


def _summary(recording: Recording) -> str:
    start, packets, quality = recording.start, recording.packets, recording.quality
    lines: list[tuple[str, object]] = [
        ("filter", start.filter or "every packet"),
        ("kernel", f"{start.release} ({start.machine}) on {start.host or 'an unnamed host'}"),
        ("probes", f"{quality['probes']} attached ({quality['ladder']}), {quality['refused']} refused by this kernel"),
    ]
    if start.limits:
        lines.append(("limits", start.limits))
    if len(packets):
        lines.append(("time", f"{packets['first'].min():%Y-%m-%d %H:%M:%S} to {packets['last'].max():%H:%M:%S} UTC"))
        lines.append(("packets", f"{len(packets):,} in {len(recording):,} hops: {counted(packets)}"))
    else:
        lines.append(("packets", "none: check that traffic that the filter matches was sent while the capture ran"))
    return facts(lines) + warning(loss_lines(recording))


def _sections(recording: Recording) -> Iterable[tuple[str, str]]:
    packets, drops = recording.packets, recording.drops
    if len(packets):
        plot = recording.plot
        yield "Diagnosis", diagnosis_html(recording.diagnose())
        yield "Packets", _wide(packets_html(packets, _PACKETS))
        if len(drops):
            over = partial(plot.drops, over="time")
            yield (
                "Drops",
                _picture(plot.drops, "drops") + _picture(over, "drops over time") + _frame(drop_counts(drops)),
            )
        yield "Paths", _picture(plot.paths, "the graph of all paths") + _paths(recording.paths)
        yield "Timelines", "".join(_timelines(recording))
        yield (
            "Latency",
            _picture(plot.latency, "latency by function")
            + _picture(plot.heatmap, "latency over time")
            + _frame(recording.functions)
            + details("transitions", _frame(recording.transitions)),
        )
        yield "Namespaces", _picture(plot.namespaces, "time by namespace and layer") + _frame(recording.namespaces)
    yield "How far this can be trusted", _wide(quality_html(recording))


def _timelines(recording: Recording) -> Iterable[str]:
    plot = recording.plot
    if len(recording.packets) > 1:
        yield _picture(plot.timeline, "timelines of all packets")
    for packet, why in _examples(recording.packets):
        yield f"<h3>{text(f'Packet {packet}: {why}')}</h3>\n"
        yield _picture(partial(plot.timeline, packet), f"timeline of packet {packet}")
        yield details(f"packet {packet} as text", preformatted(recording.text(packet)))


def _examples(packets: pd.DataFrame) -> list[tuple[int, str]]:
    """A dropped packet for each reason, then the slowest and the usual."""
    found: dict[int, str] = {}
    dropped = packets[packets["verdict"] == "dropped"]
    for reason, count in dropped["reason"].value_counts().items():
        if count:
            first: Any = dropped.index[dropped["reason"] == reason][0]
            found[int(first)] = f"dropped, {reason}"
    order = packets["total"].sort_values(kind="stable").index
    found.setdefault(int(order[-1]), "the slowest")
    found.setdefault(int(order[(len(order) - 1) // 2]), "of median duration")
    return list(found.items())[:_EXAMPLES]


def _paths(paths: pd.DataFrame) -> str:
    listed = paths["functions"].head(_ROWS).astype(str).items()
    return _frame(paths.drop(columns="functions")) + details(
        "functions of each path", _wide(table(("path", "functions"), listed))
    )


def _frame(frame: pd.DataFrame) -> str:
    return _wide(frame_html(frame, _ROWS))


def _wide(inner: str) -> str:
    return f'<div class="wide">{inner}</div>\n'


def _picture(draw: Callable[..., Any], what: str) -> str:
    """A picture for a light screen and paper, and one for a dark screen."""
    from bpfpath_nb.plot.image import draw_png

    light, dark = (base64.b64encode(draw_png(draw, theme=theme, dpi=120)).decode() for theme in ("light", "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
        f'<img alt="{text(what)}" src="data:image/png;base64,{light}"></picture>\n'
    )
