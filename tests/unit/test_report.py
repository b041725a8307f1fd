"""The report: one page that needs nothing else, runs nothing, and shows every value as text."""

from __future__ import annotations

import base64
import html.parser
import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from pictures import untouched
from PIL import Image
from streams import DEVICES, Capture, capture, start_record

from bpfpath_nb import sample
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.html.report import report_html
from bpfpath_nb.plot import style
from bpfpath_nb.plot.image import draw_png
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE
from bpfpath_nb.start import StartRecord

HOSTILE = '<script>alert("$x$")</script>&<img src=http://x/ onerror=y>'


@pytest.fixture(autouse=True)
def _nothing_global():
    with untouched():
        yield


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return sample("dns").report(tmp_path_factory.mktemp("report") / "dns.html").read_text()


class Tags(html.parser.HTMLParser):
    """The tags of a page and their attributes; every one that is opened must be closed in its turn."""

    EMPTY = frozenset({"meta", "br", "img", "source"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def pictures(page: str) -> list[Image.Image]:
    data = re.findall(r'(?:src|srcset)="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in data]


def test_it_runs_nothing_and_fetches_nothing(page: str) -> None:
    tags = Tags(page).tags
    assert {name for name, _ in tags}.isdisjoint({"script", "iframe", "object", "embed", "link", "form"})
    addresses = [value for _, attrs in tags for name, value in attrs.items() if name in {"src", "srcset", "href"}]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    assert not any(name.startswith("on") for _, attrs in tags for name in attrs)
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_it_has_every_part_and_links_to_it(page: str) -> None:
    tags = Tags(page)
    parts = [attrs["id"] for name, attrs in tags.tags if name == "section"]
    assert [attrs["href"] for name, attrs in tags.tags if name == "a"] == [f"#{part}" for part in parts]
    heads = re.findall("<h2>(.*?)</h2>", page)
    assert heads == [
        "Diagnosis", "Packets", "Drops", "Paths", "Timelines", "Latency", "Namespaces", "How far this can be trusted",
    ]  # fmt: skip


def test_each_picture_is_there_for_a_light_and_for_a_dark_screen(page: str) -> None:
    shown = pictures(page)
    assert len(shown) == 2 * page.count("<img ") > 10
    dark, light = (np.array(one.convert("L"))[0, 0] for one in shown[:2])
    assert (dark < 40, light > 240) == (True, True)
    assert all(attrs["alt"] for name, attrs in Tags(page).tags if name == "img")


def test_it_shows_a_dropped_packet_of_each_reason(page: str) -> None:
    assert "Packet 25: dropped, NETFILTER_DROP" in page
    assert "Packet 27: dropped, NO_SOCKET" in page
    assert "Packet 1: the slowest" in page


def test_paper_is_thought_of(page: str) -> None:
    rules = page[page.index("@media print") : page.index("</style>")]
    assert "details::details-content" in rules
    assert "break-inside: avoid" in rules


def test_what_others_chose_is_only_text() -> None:
    made = capture(1, kinds=("filtered",)).recording().events
    raw = start_record(filter=HOSTILE, host=HOSTILE, release=HOSTILE, machine=HOSTILE, ladder=HOSTILE)
    raw["reasons"] = {"8": HOSTILE, "3": HOSTILE}
    raw["functions"] = [function | {"name": HOSTILE} for function in raw["functions"]]
    hostile = Recording(
        Events.build(
            StartRecord.from_dict(raw), dict(made.hops), made.facts,
            processes=[(77, HOSTILE)], devices=[(*device[:3], HOSTILE) for device in DEVICES],
            locations=[(address, HOSTILE, 0) for address in made.locations], end={"reason": HOSTILE},
        )
    )  # fmt: skip
    page = report_html(hostile, HOSTILE)
    test_it_runs_nothing_and_fetches_nothing(page)
    assert HOSTILE in "".join(Tags(page).words)


def test_losses_stand_at_the_top() -> None:
    made = capture(1, kinds=("left",))
    lossy = report_html(Capture(made.events, made.facts, made.kinds, {"events_lost": 5}).recording())
    assert lossy.index("Not everything was recorded") < lossy.index("<h2>")


def test_nothing_captured_is_a_short_page_that_says_so() -> None:
    page = report_html(Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {}).recording())
    Tags(page)
    assert "check that traffic that the filter matches was sent" in page
    assert "<img" not in page


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        capture(1, kinds=("left",)).recording().report(tmp_path / "none" / "x.html")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_keeps_its_colour_in_the_file() -> None:
    recording = sample("dns")
    image = Image.open(io.BytesIO(draw_png(recording.plot.timeline, 3))).convert("RGB")
    found = {f"#{red:02x}{green:02x}{blue:02x}" for _, (red, green, blue) in image.getcolors(1 << 24)}
    layers = set(recording.df.loc[3, "layer"].dropna())
    assert {style.LAYER_COLOURS[layer] for layer in layers} <= found
    assert {style.LIGHT.paper, style.LIGHT.band, style.LIGHT.ink} <= found


def test_a_picture_is_small_the_same_each_time_and_unknown_to_pyplot() -> None:
    recording = sample("dns")
    first = draw_png(recording.plot.latency)
    assert draw_png(recording.plot.latency) == first
    assert len(first) < 60_000
    assert Image.open(io.BytesIO(first)).width == 900
    assert plt.get_fignums() == []
