"""The worked notebooks, as they are committed: executed, without errors, and to be read where nothing runs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from bpfpath_nb.check_notebook import check_notebook

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_all_of_it_can_be_read(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]

    assert check_notebook(path) == []
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
