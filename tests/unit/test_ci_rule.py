"""In CI a skip is a failure, unless it names what the machine lacks: the rule of tests/conftest.py from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"

TESTS = """
import pytest
def test_skips_for_no_good_reason(): pytest.skip("too lazy")
def test_lacks(): pytest.skip("this machine lacks: kprobes")
@pytest.mark.skipif(True, reason="too lazy")
def test_marked(): pass
@pytest.mark.skipif(True, reason="this machine lacks: kprobes")
def test_marked_lacks(): pass
@pytest.mark.xfail
def test_known_to_fail(): assert False
def test_passes(): pass
"""


def outcome(folder: Path, tests: str, ci: str) -> str:
    shutil.copy(CONFTEST, folder)
    (folder / "test_it.py").write_text(tests)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=folder, env=os.environ | {"CI": ci}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.splitlines()[-1].partition(" in ")[0]


def test_in_ci_skips_fail(tmp_path: Path) -> None:
    assert outcome(tmp_path, TESTS, "true") == "1 failed, 1 passed, 2 skipped, 1 xfailed, 1 error"


def test_elsewhere_they_do_not(tmp_path: Path) -> None:
    assert outcome(tmp_path, TESTS, "") == "1 passed, 4 skipped, 1 xfailed"


def test_in_ci_whole_modules_are_not_skipped(tmp_path: Path) -> None:
    assert outcome(tmp_path, "import pytest\npytest.importorskip('no_such_module')\n", "true") == "1 error"
