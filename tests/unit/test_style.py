"""Format, lints and types, as tests: what CI would refuse shows where the other failures show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHECKS = {
    "ruff check": [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "mypy --strict": [sys.executable, "-m", "mypy", "--strict", "-p", "bpfpath_nb"],
}


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", CHECKS)
def test_python(name: str) -> None:
    run(CHECKS[name])


def test_c() -> None:
    # bpf/headers stands in for headers of the kernel and looks like them.
    sources = sorted(str(path) for path in (ROOT / "bpf").glob("*.[ch]"))
    assert sources
    run(["clang-format", "--dry-run", "-Werror", *sources])


def test_modules_stay_one_idea() -> None:
    """A module that passes 400 lines probably holds two; this asks the question loudly at 500."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "bpfpath_nb").rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 500
    }
    assert long == {}


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [str(path) for path in (ROOT / "bpfpath_nb").rglob("*.py") if path.name in drawers] == []
