"""The gallery's command makes every picture of the page from the recordings in the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    subprocess.run(
        [sys.executable, DOCS / "gallery.py", folder], check=True, capture_output=True, cwd=DOCS.parent,
        env=os.environ | {"PYTHONPATH": str(DOCS.parent), "MPLBACKEND": "agg"},
    )  # fmt: skip
    return folder


def test_each_picture_of_the_page_is_made_and_small(made: Path) -> None:
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (made / "gallery.md").read_text())
    assert len(shown) >= 12
    assert sorted(shown) == sorted(f"gallery/{path.name}" for path in (made / "gallery").iterdir())
    for name in shown:
        assert (made / name).stat().st_size <= 60_000
        with Image.open(made / name) as image:
            assert image.width == 900
            # A picture of nothing has a few shades of one text.
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 12, name


def test_the_page_in_the_repository_is_the_one_that_is_made(made: Path) -> None:
    assert (DOCS / "gallery.md").read_text() == (made / "gallery.md").read_text()
    assert {path.name for path in (DOCS / "gallery").iterdir()} == {path.name for path in (made / "gallery").iterdir()}
