"""The report in a real browser: it asks for nothing, reads without its style, and prints whole."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page

from bpfpath_nb import sample

SHOWN = "document.body.innerText"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample("dns").report(tmp_path_factory.mktemp("report") / "dns.html")


@pytest.fixture
def reader(browser: Browser):
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    yield page
    page.close()


def test_it_asks_for_nothing_and_shows_all_its_pictures(reader: Page, report: Path) -> None:
    asked: list[str] = []
    said: list[str] = []
    reader.on("request", lambda request: asked.append(request.url))
    reader.on("console", lambda message: said.append(message.text))
    reader.goto(report.as_uri())
    widths = reader.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(widths) >= 8
    assert min(widths) > 600
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert said == []
    assert reader.evaluate("document.documentElement.scrollWidth") <= 1100


def test_it_can_be_read_without_its_style(reader: Page, report: Path, tmp_path: Path) -> None:
    page = re.sub(r"<style>.*?</style>|\sstyle=\"[^\"]*\"", "", report.read_text(), flags=re.DOTALL)
    bare = tmp_path / "bare.html"
    bare.write_text(page)
    reader.goto(bare.as_uri())
    text = reader.evaluate(SHOWN)
    recording = sample("dns")
    packet = recording.packets.loc[25]
    took = f"{packet['total'] / pd.Timedelta('1us'):.3f}"
    for told in (
        f"packets: 27 in {len(recording):,} hops: 24 delivered, 3 dropped",
        "fault: a firewall rule dropped a packet that was to be forwarded",
        f"25\t{packet['flow']}\tclient > router\t{packet['hops']}\t{took}\tdropped: NETFILTER_DROP in nft_do_chain",
        "events_lost\t0",
    ):
        assert told in text
    reader.locator("summary", has_text="packet 25 as text").click()
    assert "nft_do_chain" in reader.locator("pre:visible", has_text="NETFILTER_DROP").inner_text()


def test_it_prints_whole_with_what_is_folded_open(reader: Page, report: Path, tmp_path: Path) -> None:
    reader.goto(report.as_uri())
    printed = tmp_path / "report.pdf"
    reader.pdf(path=printed, format="A4")
    text = subprocess.run(["pdftotext", "-layout", printed, "-"], capture_output=True, text=True, check=True).stdout
    for told in ("NETFILTER_DROP in nft_do_chain", "functions of each path", "packet 25 as text", "transitions", "end"):
        assert told in text
    # Of what a screen shows only when it is opened, the last line too.
    assert len(re.findall(r"\d+\.\d{3} .* consume_skb", text)) >= 1
    assert 5 < text.count("\f") < 25
    pictures = subprocess.run(["pdfimages", "-list", printed], capture_output=True, text=True, check=True).stdout
    assert pictures.count("image") >= reader.evaluate("document.images.length")
