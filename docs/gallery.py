"""Makes the gallery of pictures, docs/gallery.md, out of recordings that are in this repository.

Run it as `make gallery`. Every picture comes from a real recording by the line of code that stands above it: the same
text is executed and printed, so that the page cannot show what the code does not do.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpfpath_nb
from bpfpath_nb import Recording, sample
from bpfpath_nb.plot.image import draw_png

HERE = Path(__file__).parent
RECORDINGS = HERE.parent / "tests" / "recordings"


@dataclass(frozen=True)
class Picture:
    """One picture: its file's name, what it shows, the code that draws it, and the theme."""

    name: str
    says: str
    code: str
    theme: str = "light"


PICTURES = [
    Picture("packet", "One packet's way. Lanes are interfaces, colours are layers, hatched is waiting in a queue, "
            "arrows are crossings between namespaces. This query came first: it waited for two neighbours' addresses.",
            "dns.plot.timeline(1)"),
    Picture("dropped", "The same for a packet that an nftables rule dropped, in the dark theme.",
            "dns.plot.timeline(25)", "dark"),
    Picture("returns", "With `returns=True`: a function is as wide as it took, and what it called lies under it.",
            "calls.plot.timeline(1)"),
    Picture("packets", "All packets side by side. Many become one row for each path, each step as long as its median.",
            "dns.plot.timeline()"),
    Picture("paths", "All paths as one graph, folded into layers: what goes where, and where it ends.",
            "dns.plot.paths()"),
    Picture("functions", "The same of the queries alone, with every function, in the dark theme.",
            'dns.where("dst port 53").plot.paths(fold=False)', "dark"),
    Picture("latency", "How long packets take from each function to the next, those with the most time in all first.",
            "dns.plot.latency(top=20)"),
    Picture("transitions", "The same by transition, which tells work from waiting in a queue.",
            'dns.plot.latency("transition", top=16)', "dark"),
    Picture("ecdf", "From first hop to last: how many packets took at most so long, by verdict.",
            'cases.plot.latency("verdict", of="total")'),
    Picture("namespaces", "Where the time goes: layers in each namespace, mean per packet.", "dns.plot.namespaces()"),
    Picture("drops", "Drops by reason and function, of a capture of some eighty causes of lost and late packets.",
            "cases.plot.drops()"),
    Picture("drops-time", "When each was.", 'cases.plot.drops(over="time")', "dark"),
    Picture("heatmap", "Latency over time. Few packets are points, many are counted in cells.", "cases.plot.heatmap()"),
    Picture("lossy", "A capture that lost events says so under every picture.", "lossy.plot.timeline()"),
    Picture("alignment", "Two packets compared: their paths, side by side, and where they part.",
            "bpfpath_nb.compare(dns, packets=(3, 25)).plot.alignment()"),
    Picture("shifts", "And the shifts of the medians, with their intervals.",
            "bpfpath_nb.compare(answered, dropped).plot.shifts()", "dark"),
]  # fmt: skip


def recordings() -> dict[str, Any]:
    """The names that the code of the pictures uses."""
    dns = sample("dns")
    queries = dns.where("dst port 53")
    return {
        "bpfpath_nb": bpfpath_nb,
        "dns": dns,
        "answered": queries.query("verdict == 'delivered'"),
        "dropped": queries.query("verdict == 'dropped'"),
        "cases": Recording.load(RECORDINGS / "cases-6.18.parquet"),
        "calls": Recording.load(RECORDINGS / "returns-6.12.parquet"),
        "lossy": Recording.load(RECORDINGS / "lossy-6.18.parquet"),
    }


def draw(picture: Picture, names: dict[str, Any]) -> bytes:
    """The picture as a PNG. Its code ends in a call; the theme is given to that."""
    call, _, arguments = picture.code.rpartition("(")
    arguments = arguments.removesuffix(")")
    code = f"{call}({arguments}{', ' if arguments else ''}theme={picture.theme!r})"
    return draw_png(lambda: eval(code, names), dpi=100)


def page() -> str:
    """The page that shows them all."""
    parts = [
        "# Gallery",
        "Each picture is made from a real recording by the line above it. `make gallery` makes them anew.",
        "```python\n"
        'dns = sample("dns")  # a client, a router, a name server; Linux 6.12 with kprobes\n'
        'cases = Recording.load("tests/recordings/cases-6.18.parquet")  # faults, one by one; Linux 6.18 without\n'
        'calls = Recording.load("tests/recordings/returns-6.12.parquet")  # Linux 6.12, with returns\n'
        'lossy = Recording.load("tests/recordings/lossy-6.18.parquet")  # its ring was too small\n'
        'queries = dns.where("dst port 53")\n'
        "answered, dropped = queries.query(\"verdict == 'delivered'\"), queries.query(\"verdict == 'dropped'\")\n"
        "```",
    ]
    for picture in PICTURES:
        code = picture.code if picture.theme == "light" else f"{picture.code}  # theme='dark'"
        parts.append(f"{picture.says}\n\n```python\n{code}\n```\n\n![{picture.says}](gallery/{picture.name}.png)")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=HERE, help="where to leave gallery.md and gallery/")
    folder = parser.parse_args().folder
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    names = recordings()
    for picture in PICTURES:
        drawn = draw(picture, names)
        (folder / "gallery" / f"{picture.name}.png").write_bytes(drawn)
        print(f"{picture.name:12} {len(drawn) / 1000:5.0f} kB  {picture.code}")
    (folder / "gallery.md").write_text(page())


if __name__ == "__main__":
    main()
