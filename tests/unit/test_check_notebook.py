"""`bpfpath check-notebook`: what a saved notebook does not show where no JavaScript runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from bpfpath_nb import cli
from bpfpath_nb.check_notebook import WIDGET, check_notebook
from bpfpath_nb.errors import NotebookError

ROOT = Path(__file__).parents[2]


def saved(folder: Path, *bundles: dict[str, Any], **metadata: Any) -> Path:
    """A notebook with one cell and these outputs."""
    outputs = [nbformat.v4.new_output("display_data", data=bundle) for bundle in bundles]
    cells = [nbformat.v4.new_markdown_cell("text"), nbformat.v4.new_code_cell("1", outputs=outputs)]
    path = folder / "x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


VIEW = {"model_id": "m", "version_major": 2, "version_minor": 0}

GOOD = {
    "text": {"text/plain": "x"},
    "a widget beside HTML": {WIDGET: VIEW, "text/html": "<b>x</b>"},
    "a widget beside an image": {WIDGET: VIEW, "image/png": "iVBORw0KGgo="},
    "an image inside": {"text/html": '<img src="data:image/png;base64,iVBORw0KGgo=">'},
    "a page inside": {"text/html": '<iframe srcdoc="&lt;b&gt;x"></iframe>'},
    "a script that is only quoted": {"text/html": "<pre>&lt;script&gt;</pre>"},
}
BAD = {
    "a widget": ({WIDGET: VIEW, "text/plain": "VBox()"}, "widget and nothing else"),
    "JavaScript": ({"application/javascript": "alert(1)"}, "only JavaScript"),
    "a plot of plotly's": ({"application/vnd.plotly.v1+json": {}}, "only JavaScript"),
    "a script": ({"text/html": "<b>x</b><SCRIPT src='https://a/b.js'></SCRIPT>"}, "has a script"),
    "a frame of a file": ({"text/html": '<iframe src="report.html"></iframe>'}, "'report.html'"),
    "a file by its path": ({"text/html": '<iframe src="file:///tmp/report.html"></iframe>'}, "local file"),
    "an image of a file": ({"text/html": '<img src="plot.png">'}, "'plot.png'"),
    "too much": ({"text/html": "x" * 200_001}, "200 KB"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_everybody_can_see(name: str, tmp_path: Path) -> None:
    assert check_notebook(saved(tmp_path, GOOD[name])) == []


@pytest.mark.parametrize("name", BAD)
def test_what_not_everybody_can_see(name: str, tmp_path: Path) -> None:
    bundle, told = BAD[name]
    (problem,) = check_notebook(saved(tmp_path, GOOD["text"], bundle))
    assert (problem.cell, problem.output) == (2, 2)
    assert told in problem.what


def test_a_widget_whose_state_is_saved_hides_its_html(tmp_path: Path) -> None:
    state = {"application/vnd.jupyter.widget-state+json": {"state": {"m": {}}, "version_major": 2}}
    (problem,) = check_notebook(saved(tmp_path, GOOD["a widget beside HTML"], widgets=state))
    assert "state" in problem.what


def test_the_limit_is_the_callers(tmp_path: Path) -> None:
    path = saved(tmp_path, {"text/plain": "x" * 5000})
    assert check_notebook(path) == []
    assert len(check_notebook(path, limit=4000)) == 1


def test_a_real_widget_and_a_real_frame_are_found(tmp_path: Path) -> None:
    code = "import ipywidgets, IPython.display as d; d.display(ipywidgets.IntSlider(), d.IFrame('x.html', 9, 9))"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", store_widget_state=False).execute()
    path = tmp_path / "x.ipynb"
    nbformat.write(notebook, path)
    assert [problem.output for problem in check_notebook(path)] == [1, 2]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cells": [1]}', '{"cells": [{"outputs": [7]}]}', "[" * 100_000])
def test_what_is_no_notebook_is_one_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.ipynb").write_text(content)
    with pytest.raises(NotebookError, match="no notebook"):
        check_notebook(tmp_path / "x.ipynb")


def test_the_command_reports_and_has_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-notebook", str(saved(tmp_path, BAD["a widget"][0]))]) == 1
    assert f"{tmp_path}/x.ipynb: cell 2, output 1: it is a widget" in capsys.readouterr().out
    assert cli.main(["check-notebook", "--limit", "1", str(saved(tmp_path, {"text/plain": "x" * 2000}))]) == 1
    assert cli.main(["check-notebook", str(tmp_path / "none.ipynb")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_all_of_our_notebooks_can_be_seen() -> None:
    notebooks = sorted(ROOT.glob("notebooks/*.ipynb"))
    assert notebooks
    command = [sys.executable, "-m", "bpfpath_nb.cli", "check-notebook", *map(str, notebooks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
