"""JupyterLab as people have it: the real server, in a real browser, with the real kernel of this machine behind it.

One server and one browser serve all tests here. Chromium is Debian's; Playwright only drives it, and nothing is
downloaded. The server has folders of its own for settings and data, so nobody's are touched.

Nothing of all that stays: at the end the kernels are shut down as a person would, then the server; and it ends by
itself where this process is killed. What does not go in time is killed, and fails the run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")

PATIENCE = 60_000  # ms; in CI two processors do everything at once
expect.set_options(timeout=PATIENCE)

_SETTINGS = {
    # No question about news over the page, and all cells in it, also those out of sight.
    "@jupyterlab/apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "@jupyterlab/notebook-extension/tracker": '{"windowingMode": "none", "recordTiming": false}',
    "@jupyterlab/docmanager-extension/plugin": '{"autosave": false}',
}


def _live() -> ModuleType:
    """What the live tests know of finding leftovers."""
    spec = importlib.util.spec_from_file_location("live_conftest", ROOT / "tests" / "live" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


live = _live()

from processes import children  # noqa: E402 - the live tests' conftest says where it is


def pytest_configure() -> None:
    os.environ[live.SESSION] = secrets.token_hex(8)


def pytest_runtest_setup() -> None:
    if os.geteuid() != 0:
        pytest.skip("browser tests capture packets: run them as root (sudo make test-browser)")
    if CHROMIUM is None:
        pytest.skip("this machine lacks: chromium (Debian: apt install chromium)")


@pytest.fixture(scope="session", autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Fail a run that leaves anything of ours on the machine: set up first, it looks when all else is taken down."""
    before = live.look()
    yield
    deadline = time.monotonic() + live.PATIENCE
    while (left := live.leftovers(before, live.look())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@dataclass(frozen=True)
class Server:
    """A running JupyterLab."""

    url: str
    token: str
    folder: Path

    def ask(self, path: str, method: str = "GET") -> bytes:
        """An answer of its REST API."""
        asked = urllib.request.Request(f"{self.url}/api/{path}?token={self.token}", method=method)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return bytes(answer.read())

    def page_of(self, name: str) -> str:
        """Where a notebook of the server's folder is shown."""
        return f"{self.url}/lab/tree/{name}?token={self.token}&reset"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("notebooks")
    for name, content in _SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_TOKEN": token, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
             "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}",
             "--LabApp.extension_manager=readonly"],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        made = Server(f"http://127.0.0.1:{port}", token, folder)
        try:
            _wait_for(made, process, home / "log")
            yield made
        finally:
            _end(made, process, home / "log")


def _wait_for(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.ask("status")
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def _end(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """End the kernels, and they their captures, then the server."""
    deadline = time.monotonic() + 120
    # One that is told to end while a kernel restarts forgets about it, and goes on for ever (jupyter_client 8.10:
    # InvalidStateError out of `_async_shutdown_kernel`). Shutting that kernel down fails too, but can be asked again.
    while process.poll() is None and time.monotonic() < deadline:
        try:
            for kernel in json.loads(server.ask("kernels")):
                server.ask(f"kernels/{kernel['id']}", "DELETE")
            break
        except urllib.error.HTTPError:
            time.sleep(0.5)
        except OSError:
            break
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        for kernel in children(process.pid):  # each has a process group of its own
            os.kill(kernel, signal.SIGKILL)
        process.kill()
        process.wait()
        pytest.fail(f"JupyterLab did not end, and was killed:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page(browser: Browser) -> Iterator[Page]:
    """A tab that stays open from test to test."""
    page = browser.new_page(viewport={"width": 1360, "height": 1500})
    page.set_default_timeout(PATIENCE)
    # On a slow machine JupyterLab asks whether to go on waiting, and for what kernel; its own proposal will do.
    unasked = page.locator(".jp-Dialog", has_not_text="Restart")
    page.add_locator_handler(unasked, lambda dialog: dialog.locator("button.jp-mod-accept").click())
    yield page
    page.close()


@pytest.fixture
def attached() -> Iterator[object]:
    """What of ours is attached to the kernel now, beside what was before the test; nothing may be at its end."""
    before = live.look()

    def now() -> list[str]:
        return [what for what in live.leftovers(before, live.look()) if what.startswith(("BPF", "clsact"))]

    yield now
    deadline = time.monotonic() + live.PATIENCE
    while (left := now()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
