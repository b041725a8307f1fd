"""The package's description of itself: one version, the same dependencies everywhere, never the wrong bcc."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import bpfpath_nb.version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

CONDA_NAMES = {
    "matplotlib": "matplotlib-base",
    "build": "python-build",
    "duckdb": "python-duckdb",
    "playwright": "playwright-python",
}
"""What conda-forge calls differently."""
CONDA_LACKS = {"virtme-ng": "vm", "perfetto": "perfetto", "retis": "retis"}
"""What only PyPI has: environment.yml gets it through pip, as the extra of ours that is named here."""
CONDA_ONLY = {"python", "pip", "libpcap"}


def requirements() -> dict[str, str]:
    """Every Python package that pyproject.toml names, with its bound; itself excepted."""
    lines = [*PROJECT["dependencies"], *(line for group in PROJECT["optional-dependencies"].values() for line in group)]
    return dict(split(line) for line in lines if not line.startswith("bpfpath_nb"))


def split(line: str) -> tuple[str, str]:
    # conda-forge's packages bring what PyPI's have as extras.
    match = re.fullmatch(r"([A-Za-z0-9_-]+)(?:\[[^]]*\])?(.*)", line)
    assert match, line
    return match[1], match[2]


def environment() -> dict[str, str]:
    """What environment.yml takes from conda-forge. Its lines are plain enough to be read without a YAML parser."""
    lines = re.findall(r"^  - ([^:\n]+)$", (ROOT / "environment.yml").read_text(), re.M)
    return dict(split(line) for line in lines if line not in ("conda-forge", "nodefaults"))


def test_environment_is_in_step_with_pyproject() -> None:
    expected = {CONDA_NAMES.get(name, name): bound for name, bound in requirements().items() if name not in CONDA_LACKS}

    assert {name: bound for name, bound in environment().items() if name not in CONDA_ONLY} == expected
    assert environment()["python"] == PROJECT["requires-python"]
    assert f"--editable .[{','.join(CONDA_LACKS.values())}]" in (ROOT / "environment.yml").read_text()


def test_environment_says_where_bcc_comes_from() -> None:
    comments = [line for line in (ROOT / "environment.yml").read_text().splitlines() if line.startswith("#")]

    assert "python3-bpfcc" in "\n".join(comments)


@pytest.mark.parametrize("name", ["bcc", "pybcc", "bpfcc", "python-bcc", "python3-bpfcc"])
def test_nothing_depends_on_a_bcc_of_pypi_or_conda(name: str) -> None:
    assert name not in requirements()
    assert name not in environment()


def test_no_file_of_ours_installs_bcc_by_pip() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in filter(None, tracked.split("\0")):
        if Path(path).suffix in {".md", ".py", ".toml", ".yml", ".ipynb", ".txt", ""} and (ROOT / path).is_file():
            text = (ROOT / path).read_text(errors="replace")
            assert not re.search(r"pip3? install[^\n]*\s[\"']?bcc\b", text), path


def test_version_is_the_same_everywhere() -> None:
    version = bpfpath_nb.version.__version__

    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[(Unreleased|{re.escape(version)})\]", changelog, re.M)


def test_sdist_has_what_it_takes_to_build_and_to_test(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}

    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "bpf").rglob("*.h")}
    assert sources
    assert sources <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "Makefile", "environment.yml", "bpfpath_nb/version.py"} <= names
    assert "tests/conftest.py" in names
    assert not [name for name in names if name.startswith((".venv", "out/", ".cache"))]
