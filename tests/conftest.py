"""What holds for all tests: in CI nothing is skipped that the machine could have run.

A skip is a hole in the proof. A test may skip for what the machine truly lacks, and then its reason begins with
`LACKING`; every other skip is turned into a failure where the environment says CI=true.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

LACKING = "this machine lacks: "
"""How the reason of a skip begins that is allowed in CI, such as "this machine lacks: kprobes"."""

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def pytest_report_header() -> str:
    who = "root" if os.geteuid() == 0 else "not root: live tests are skipped"
    return f"kernel {os.uname().release}, {who}"


def _forbidden(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The reason of a skip that must not be, else None. An expected failure is reported as a skip too and is none."""
    if not IN_CI or not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    return None if reason.startswith(LACKING) else reason


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (reason := _forbidden(report)) is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI must not skip what this machine can run: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if (reason := _forbidden(report)) is not None:
        report.outcome = "failed"
        report.longrepr = f"module skipped, and CI must not skip what this machine can run: {reason}"
    return report
