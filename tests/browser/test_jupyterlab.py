"""A notebook from its first cell to its last reader: captured live, clicked through, interrupted, saved, and read
where nothing runs.

The tests go through one notebook in order, as a person would.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from bpfpath_nb.check_notebook import check_notebook

SHOTS = os.environ.get("BPFPATH_SHOTS", "")
"""A folder for pictures of what was seen; `make screenshots` sets it."""

PREFIX = "" if SHOTS else f"b{secrets.token_hex(2)}-"
NAMESPACES = f"-n {PREFIX}client,{PREFIX}router,{PREFIX}server"
ASK = ["dig", "+short", "+time=1", "+tries=1", "@10.0.2.2", "www.example.test", "A"]
CELLS = {
    "load": "%load_ext bpfpath_nb",
    "lab": f"from bpfpath_nb.lab import Lab\n\nlab = Lab.dns(prefix='{PREFIX}')",
    "capture": f"%%bpfpath udp port 53 {NAMESPACES} -o cap\n"
    f"ask = {ASK}\n"
    "for _ in range(3):\n    lab.run('client', ask)\n"
    "with lab.drop('router', 'udp dport 53'):\n    lab.run('client', ask)",
    "explore": "panel = cap.explore()\npanel",
    "compare": "cap.compare_namespaces()",
    "live": "watch = live('udp port 53', namespaces=list(lab.names.values()))\nwatch",
    "usable": "6 * 7",
    "frozen": "panel.snapshot()",
    "interrupted": f"%%bpfpath udp port 53 {NAMESPACES} -o cut\nimport time\nlab.run('client', ask)\nprint('asked')\n"
    "time.sleep(120)",
    "kept": "cut.packets['verdict'].tolist()",
    "running": "left = Capture('udp port 53', namespaces=list(lab.names.values()))\nleft.status.state",
}
NAME = "session.ipynb"


class Notebook:
    """A notebook in a tab."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.panel = page.locator(".jp-NotebookPanel")

    def cell(self, name: str) -> Locator:
        return self.panel.locator(".jp-CodeCell").nth(list(CELLS).index(name))

    def start(self, name: str) -> Locator:
        cell = self.cell(name)
        prompt = cell.locator(".jp-InputArea-prompt")
        before = prompt.text_content()
        for _ in range(5):
            cell.locator(".jp-InputArea-editor .cm-content").click()
            expect(cell).to_have_class(re.compile("jp-mod-active"))
            self.page.keyboard.press("Control+Enter")
            # A page that is still busy with itself may not have heard it.
            if soon(lambda: prompt.text_content() != before, 10):
                break
        return cell

    def run(self, name: str, seconds: float = 90) -> Locator:
        cell = self.start(name)
        expect(cell.locator(".jp-InputArea-prompt")).to_have_text(re.compile(r"\[\d+\]:"), timeout=seconds * 1000)
        assert cell.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_text_contents() == []
        return cell

    def shot(self, what: Locator, name: str, down_from: Locator | None = None) -> None:
        if SHOTS:
            what.scroll_into_view_if_needed()
            what.page.wait_for_timeout(1000)
            picture = Image.open(io.BytesIO(what.screenshot())).convert("RGB")
            whole, part = what.bounding_box(), (down_from or what).bounding_box()
            assert whole is not None
            assert part is not None
            picture = picture.crop((0, int(part["y"] - whole["y"]), *picture.size))
            picture.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(f"{SHOTS}/{name}.png")


def soon(holds: Callable[[], object], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(holds())


def ask() -> None:
    """A query, by no process of the notebook's."""
    subprocess.run(["ip", "netns", "exec", f"{PREFIX}client", *ASK], capture_output=True, check=True, timeout=30)


@pytest.fixture(scope="session")
def notebook(server, page: Page) -> Notebook:
    cells = [nbformat.v4.new_code_cell(code) for code in CELLS.values()]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), server.folder / NAME)
    page.goto(server.page_of(NAME))
    made = Notebook(page)
    expect(made.panel.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute(
        "data-status", "idle", timeout=90_000
    )
    return made


def test_a_cell_is_captured_and_shown(notebook: Notebook, attached: Callable[[], list[str]]) -> None:
    notebook.run("load")
    notebook.run("lab")
    cell = notebook.run("capture")
    shown = cell.locator(".jp-OutputArea-output")
    expect(shown).to_contain_text("6 delivered, 1 dropped")
    expect(shown).to_contain_text("NETFILTER_DROP in nft_do_chain")
    path = shown.locator("details").first
    expect(path.locator("pre")).not_to_be_visible()
    path.locator("summary").click()
    expect(path.locator("pre")).to_contain_text("tc_egress")
    notebook.shot(shown, "capture", down_from=shown.locator("table").first)  # what kernel it was changes nothing
    assert attached() == []


def test_the_explorer_is_clicked_through(notebook: Notebook) -> None:
    panel = notebook.run("explore").locator(".jp-OutputArea-output")
    expect(panel).to_contain_text("packet 1:")
    listed = panel.locator("select[size]").first
    expect(listed.locator("option")).to_have_count(7)

    flow = panel.locator("input[placeholder^='udp port 53']")
    flow.fill("verdict == 'dropped'")
    flow.press("Enter")
    expect(listed.locator("option")).to_have_count(1)
    picture = panel.locator("img").first
    before = picture.get_attribute("src")
    listed.select_option(index=0)
    expect(panel).to_contain_text("dropped: NETFILTER_DROP in nft_do_chain")
    assert soon(lambda: picture.get_attribute("src") != before)
    assert soon(lambda: picture.evaluate("image => image.complete && image.naturalWidth > 300"))
    notebook.shot(panel, "explore")

    flow.fill("udp prot 53")
    flow.press("Enter")
    expect(panel).to_contain_text("syntax error")
    flow.fill("udp src port 53")
    flow.press("Enter")
    expect(listed.locator("option")).to_have_count(3)
    flow.fill("")
    flow.press("Enter")
    expect(listed.locator("option")).to_have_count(7)

    tabs = panel.locator(".lm-TabBar-tab")
    tabs.filter(has_text="hops").click()
    expect(panel.locator("td", has_text="kfree_skb")).to_be_visible()
    tabs.filter(has_text="same path").click()
    tabs.filter(has_text="functions").click()
    functions = panel.locator("select[size]:visible").first
    expect(functions.locator("option").first).to_contain_text(re.compile("netfilter|driver|transport|ip|skb"))
    tabs.filter(has_text="drops").click()
    panel.locator("select[size]:visible").first.select_option(index=0)
    expect(panel).to_contain_text("dropped: NETFILTER_DROP in nft_do_chain")


def test_two_namespaces_are_compared(notebook: Notebook) -> None:
    panel = notebook.run("compare").locator(".jp-OutputArea-output")
    expect(panel).to_contain_text("Comparison: ")
    first, second = panel.locator("select").nth(0), panel.locator("select").nth(1)
    first.select_option(index=0)
    second.select_option(index=2)
    expect(panel).to_contain_text("(b)")
    panel.locator("button", has_text="packets").click()
    expect(panel).to_contain_text("Comparison: packet 1 (a) and packet 2 (b)")
    numbers = panel.locator("input[type=number]")
    numbers.nth(1).fill("7")
    numbers.nth(1).press("Enter")
    expect(panel).to_contain_text("packet 7")
    panel.locator(".lm-TabBar-tab", has_text="alignment").click()
    expect(panel.locator("th:visible", has_text="median gap").first).to_be_visible()
    notebook.shot(panel, "compare")


def test_the_live_panel_shows_packets_as_they_come(notebook: Notebook, attached: Callable[[], list[str]]) -> None:
    panel = notebook.run("live").locator(".jp-OutputArea-output")
    typed = panel.locator("input[type=text]").first
    typed.fill("udp prot")
    expect(panel).to_contain_text("syntax error")
    expect(panel.locator("button", has_text="start")).to_be_disabled()
    typed.fill("udp port 53")
    panel.locator("button", has_text="start").click()
    expect(panel).to_contain_text("capturing")
    assert attached() != []

    ask()
    expect(panel).to_contain_text("delivered")
    expect(notebook.run("usable").locator(".jp-OutputArea-output")).to_contain_text("42")
    notebook.shot(panel, "live")

    panel.locator("button", has_text="stop").click()
    expect(panel).to_contain_text("stopped: 2 packets")
    assert soon(lambda: attached() == [])
    expect(panel.locator("button", has_text="start")).to_have_count(1)


def test_an_interrupt_keeps_what_was_captured(notebook: Notebook, attached: Callable[[], list[str]]) -> None:
    cell = notebook.start("interrupted")
    expect(cell.locator(".jp-OutputArea")).to_contain_text("asked")
    assert attached() != []
    notebook.page.locator(".jp-NotebookPanel-toolbar [data-command='notebook:interrupt-kernel'], "
                          ".jp-NotebookPanel-toolbar [data-jp-item-name='interrupt']").first.click()  # fmt: skip
    expect(cell.locator(".jp-OutputArea")).to_contain_text("KeyboardInterrupt")
    expect(cell.locator(".jp-OutputArea")).to_contain_text("2 delivered")
    assert soon(lambda: attached() == [])
    expect(notebook.run("kept").locator(".jp-OutputArea-output")).to_contain_text("['delivered', 'delivered']")


def test_the_saved_notebook_can_be_read_where_nothing_runs(notebook: Notebook, server, browser: Browser) -> None:
    notebook.run("frozen")
    notebook.page.keyboard.press("Control+s")
    path = server.folder / NAME
    assert soon(lambda: "application/vnd.jupyter.widget-view+json" in path.read_text())
    assert soon(lambda: "NETFILTER_DROP" in path.read_text())
    assert check_notebook(path) == []

    saved = nbformat.read(path, as_version=4)
    nothing_from_outside = {name: "" for name in HTMLExporter.class_trait_names() if name.endswith("_url")}
    html, _ = HTMLExporter(**nothing_from_outside).from_notebook_node(saved)
    (server.folder / "session.html").write_text(html)
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1100, "height": 1000})
    reader = context.new_page()
    outside: list[str] = []
    reader.on("request", lambda request: outside.append(request.url))
    reader.goto(f"file://{server.folder}/session.html")
    body = reader.locator("body")
    for told in ("6 delivered, 1 dropped", "NETFILTER_DROP in nft_do_chain", "Comparison: ", "stopped: 2 packets"):
        expect(body).to_contain_text(told, use_inner_text=True)
    assert reader.locator("img").count() >= 2  # the timeline, of the explorer and of its snapshot
    assert [url for url in outside if not url.startswith(("file:", "data:"))] == []
    context.close()


def test_the_saved_notebook_can_be_read_untrusted(notebook: Notebook, server, browser: Browser) -> None:
    saved = nbformat.read(server.folder / NAME, as_version=4)
    saved.cells.append(nbformat.v4.new_markdown_cell("changed by someone else"))
    saved.metadata.pop("kernelspec")
    nbformat.write(saved, server.folder / "others.ipynb")
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    reader = context.new_page()
    reader.goto(server.page_of("others.ipynb"))
    panel = reader.locator(".jp-NotebookPanel")
    expect(panel).to_contain_text("changed by someone else", timeout=60_000)
    if (button := reader.locator(".jp-Dialog button", has_text="No Kernel")).count():
        button.click()
    captured = panel.locator(".jp-CodeCell").nth(list(CELLS).index("capture"))
    expect(captured).to_contain_text("6 delivered, 1 dropped")
    expect(captured).to_contain_text("NETFILTER_DROP in nft_do_chain")
    frozen = panel.locator(".jp-CodeCell").nth(list(CELLS).index("frozen"))
    expect(frozen).to_contain_text("packet ")
    assert soon(lambda: frozen.locator("img").first.evaluate("image => image.complete && image.naturalWidth > 300"))
    context.close()


def test_clearing_a_live_panel_away_detaches(notebook: Notebook, attached: Callable[[], list[str]]) -> None:
    cell = notebook.cell("live")
    start = cell.locator("button", has_text="start")
    expect(start).to_be_enabled()
    start.click()
    expect(cell).to_contain_text("capturing")
    assert attached() != []

    cell.locator(".jp-InputArea-editor .cm-content").click()
    notebook.page.locator(".lm-MenuBar-item", has_text="Edit").click()
    notebook.page.locator(".lm-Menu-item", has_text=re.compile("^Clear (Cell )?Output$")).click()
    expect(cell.locator(".jp-OutputArea button")).to_have_count(0)
    assert soon(lambda: attached() == [])


def test_a_restart_in_mid_capture_detaches(notebook: Notebook, attached: Callable[[], list[str]]) -> None:
    expect(notebook.run("running").locator(".jp-OutputArea-output")).to_contain_text("capturing")
    assert attached() != []
    notebook.page.locator(".jp-NotebookPanel-toolbar [data-command='kernelmenu:restart'], "
                          ".jp-NotebookPanel-toolbar [data-jp-item-name='restart']").first.click()  # fmt: skip
    notebook.page.locator(".jp-Dialog button", has_text="Restart").click()
    assert soon(lambda: attached() == [])
    assert soon(lambda: not Path(f"/run/netns/{PREFIX}client").exists())
    # The restarted kernel serves the notebook as the first one did.
    expect(notebook.run("usable").locator(".jp-OutputArea-output")).to_contain_text("42")
