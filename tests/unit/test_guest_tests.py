"""The tests for the stock kernels can be collected: what they import is there, seen before a machine is emulated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUEST = ROOT / "tests" / "kernels" / "guest"


def test_they_can_be_collected() -> None:
    """Alone in a process, as the guest has it: here other tests' folders are on the path."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(GUEST)],
        cwd=ROOT, env=os.environ | {"KERNELS": "6.12 5.10 6.1 sid"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert files == {str(path.relative_to(ROOT)) for path in GUEST.glob("test_*.py")}
