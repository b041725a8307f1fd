"""Tests that run in emulated machines, as items of one run of pytest on the host.

`bpfpath vm` boots a kernel; in the machine a pytest of its own runs the tests chosen for that kernel, all in one
process, because starting one takes longest there. What it reports of each test goes, in pytest's own form for sending
reports elsewhere, over file descriptor 3 and the machine's standard output to the host, whose pytest shows it as its
own. The names of tests are the same on both sides: ``test_stock.py::test_the_ladder[5.10]``.

What the guest's pytest prints goes to ``out/kernels/KERNEL.log`` as it comes.
"""

from __future__ import annotations

import compileall
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from bpfpath_nb.errors import LabError
from bpfpath_nb.lab import kernels

VARIABLE = "BPFPATH_GUEST"
"""Set in a guest: the name of its kernel."""
GUEST = os.environ.get(VARIABLE, "")
REPORTS = 3  # file descriptor
SIDE_BY_SIDE = 2
"""Machines at a time. Most of what one does, one processor does; two keep two busy."""
NEVER_BEGAN = "the virtual machine ended before the command did"
"""What `bpfpath vm` says then. Of some hundred emulated kernels one panics while it boots."""
SILENCE = 1800.0
"""Seconds after which a guest that reports nothing is ended."""


class Sender:
    """The guest's side."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._file = os.fdopen(REPORTS, "w", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._file.write(json.dumps(data) + "\n")


class Guest:
    """One machine and the reports that came from it. `run` is for a thread, the rest for pytest's."""

    def __init__(self, kernel: str, tests: Sequence[str], root: Path) -> None:
        self.source = kernels.SOURCES[kernel]
        self.log = root / "out" / "kernels" / f"{kernel}.log"
        self._root = root
        self._tests = tests
        self._reports: defaultdict[str, list[dict[str, object]]] = defaultdict(list)
        self._news = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._end = ""
        """Why no more reports come."""

    def run(self) -> None:
        """Boot, listen until the end."""
        try:
            with kernels.held(self.source):
                pass  # fetched, so that the time of booting is not that of a network
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("wb") as log:
                status = self._listen(log)
            if self.silent and NEVER_BEGAN in self.log.read_text(errors="replace"):
                with self.log.open("ab") as log:
                    log.write(b"Its kernel did not come up; once more.\n")
                    log.flush()
                    status = self._listen(log)
            end = f"the guest ended with status {status}"
        except (LabError, OSError, ValueError) as error:
            end = str(error)
        with self._news:
            self._end = end
            self._news.notify()

    def _listen(self, log: IO[bytes]) -> int:
        inside = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *self._tests]
        redirected = ["sh", "-c", f'exec "$@" {REPORTS}>&1 1>&2', "sh", *inside]
        command = [sys.executable, "-m", "bpfpath_nb.cli", "vm", "--memory", "3G", self.source.name, "--", *redirected]
        environment = {**os.environ, VARIABLE: self.source.name, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        with subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            cwd=self._root, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
        ) as process, selectors.DefaultSelector() as watch:  # fmt: skip
            self._process = process
            assert process.stdout is not None
            watch.register(process.stdout, selectors.EVENT_READ)
            pending = b""
            while True:
                if not watch.select(SILENCE):
                    process.terminate()
                    raise LabError(f"the guest reported nothing for {SILENCE:.0f} s")
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    return process.wait()
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    report = json.loads(line)
                    if report["outcome"] == "failed":  # else the log would tell why at its end only
                        log.write(json.dumps(report["longrepr"], indent=1).encode() + b"\n")
                        log.flush()
                    self._note(report)

    def _note(self, report: dict[str, object]) -> None:
        with self._news:
            self._reports[str(report["nodeid"])].append(report)
            self._news.notify()

    def reports(self, test: str) -> tuple[list[dict[str, object]], str]:
        """What came of a test, once there is all of it; and where that will never be, why."""

        def complete() -> bool:
            return any(report["when"] == "teardown" for report in self._reports[test])

        with self._news:
            while not complete() and not self._end:
                self._news.wait(1.0)  # a limit, or Ctrl-C would wait too
            return self._reports[test], "" if complete() else self._end

    @property
    def silent(self) -> bool:
        """Whether it never reported anything."""
        return not self._reports or not any(self._reports.values())

    def end(self) -> None:
        """End the machine if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)


class Receiver:
    """The host's side: runs the guests, and shows their reports in the place of running tests here."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._guests: dict[str, Guest] = {}
        self._threads = ThreadPoolExecutor(SIDE_BY_SIDE)
        self._started = time.monotonic()
        self._told: list[str] = []

    def start(self, items: Sequence[pytest.Item]) -> None:
        """Start the guests of all tests, as many at a time as are good."""
        root = self._config.rootpath
        if root.stat().st_uid == os.geteuid():  # else nothing is left in the user's folder
            compileall.compile_dir(root / "bpfpath_nb", quiet=2)
        tests: defaultdict[str, list[str]] = defaultdict(list)
        for item in items:
            if kernel := kernel_of(item):
                tests[kernel].append(item.nodeid)
        for kernel, chosen in tests.items():
            self._guests[kernel] = Guest(kernel, chosen, root)
            self._threads.submit(self._guests[kernel].run)

    def show(self, item: pytest.Item) -> None:
        """Wait for a test's reports and show them."""
        if not self._guests:
            self.start(item.session.items)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        guest = self._guests[kernel_of(item)]
        data, why = guest.reports(item.nodeid)
        for entry in data:
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=entry)
            if report.when == "call":
                self._told += [f"{item.name}: {text}" for _, text in report.user_properties]
            item.ihook.pytest_runtest_logreport(report=report)
        if why:
            call = pytest.CallInfo.from_call(lambda: self._missing(guest, why), when="call")
            report = item.ihook.pytest_runtest_makereport(item=item, call=call)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _missing(self, guest: Guest, why: str) -> None:
        tail = guest.log.read_text(errors="replace").splitlines()[-30:] if guest.log.exists() else []
        if guest.source.moves and guest.silent:
            pytest.skip(f"this machine lacks: Debian's newest kernel ({why} {' '.join(tail[-2:])})")
        pytest.fail("\n".join([why, *tail]), pytrace=False)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What the tests measured."""
        if self._told:
            terminalreporter.section("measured in the guests")
            for line in self._told:
                terminalreporter.write_line(line)

    def pytest_sessionfinish(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for guest in self._guests.values():
            guest.end()
        self._threads.shutdown()


def kernel_of(item: pytest.Item) -> str:
    """The kernel that a test is for; empty where it runs here."""
    spec = getattr(item, "callspec", None)
    return str(spec.params.get("guest", "")) if spec else ""
