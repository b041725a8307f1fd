"""The package as others get it: a wheel in a plain venv, an editable install, a checkout. Each captures a packet.

What this proves beside the rest of the tests: `bpf/` is found in each of the three, and bcc, which lies among the
distribution's Python packages, is found from a venv that sees none of those, without making the others importable.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bpfpath_nb.samples import SAMPLES

ROOT = Path(__file__).parents[2]

CAPTURE = """
import sys
import bpfpath_nb
from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab

print(bpfpath_nb.__file__)
with Lab.dns(prefix=sys.argv[1]) as lab:
    with Capture("udp port 53", namespaces=list(lab.names.values())) as capture:
        answer = lab.run("client", ["dig", "+short", "@10.0.2.2", "www.example.test", "A"]).stdout
        capture.wait(packets=2, seconds=10)
print(answer.strip(), len(capture.packets), capture.df["netns"].nunique())
"""

BESIDE_BCC = """
import sys
from bpfpath_nb.tracer.find_bcc import import_bcc
bcc = import_bcc()
assert hasattr(bcc, "BPF"), bcc
try:
    __import__(sys.argv[1])
except ImportError:
    print("only bcc", bcc.__file__)
assert not [place for place in sys.path if "dist-packages" in place], sys.path
"""


def plain(environment: dict[str, str] | None = None) -> dict[str, str]:
    """The environment without what could help a Python to find the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | (environment or {})


def run(command: list[str | Path], **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=plain(),
        **options,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT])
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a plain venv with the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("plain") / "venv"
    run([sys.executable, "-m", "venv", folder])
    python = folder / "bin/python"
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel])
    return python


@pytest.fixture(scope="module")
def editable(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a venv with an editable install, its dependencies borrowed from the other one."""
    folder = tmp_path_factory.mktemp("editable") / "venv"
    run([sys.executable, "-m", "venv", folder])
    python = folder / "bin/python"
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--editable", ROOT])
    (site,) = folder.glob("lib/python3*/site-packages")
    (other,) = installed.parents[1].glob("lib/python3*/site-packages")
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for entry in other.iterdir():
        if not entry.name.startswith("bpfpath_nb"):
            (dependencies / entry.name).symlink_to(entry)
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return python


def test_wheel_has_the_c_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    expected = {f"bpfpath_nb/{path.relative_to(ROOT)}" for path in (ROOT / "bpf").rglob("*") if path.is_file()}
    assert expected
    assert expected <= names
    assert "bpfpath_nb/kernel/catalogue.toml" in names
    assert {f"bpfpath_nb/samples/{name}.parquet" for name in SAMPLES} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "notebooks/", "bpf/"))]


def test_captures_from_the_wheel(installed: Path, lab_prefix: str, tmp_path: Path) -> None:
    where, result = run([installed, "-c", CAPTURE, lab_prefix], cwd=tmp_path).splitlines()

    assert Path(where).is_relative_to(installed.parents[1])
    assert result == "10.0.2.2 2 3"


def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    assert run([installed.parent / "bpfpath", "--version"], cwd=tmp_path).startswith("bpfpath_nb ")


def test_a_plain_venv_sees_bcc_and_nothing_else_of_the_distribution(installed: Path, tmp_path: Path) -> None:
    code = "import sys, importlib.util; sys.exit(importlib.util.find_spec(sys.argv[1]) is not None)"
    packages = [path.parent.name for path in Path("/usr/lib/python3/dist-packages").glob("*/__init__.py")]
    unseen = [
        name
        for name in packages
        if not subprocess.run([installed, "-c", code, name], env=plain(), check=False).returncode
    ]
    assert "bcc" in unseen
    others = [name for name in unseen if name != "bcc"]
    if not others:
        pytest.skip("this machine lacks: a second Python package of the distribution, to be kept out")

    assert run([installed, "-c", BESIDE_BCC, others[0]], cwd=tmp_path).startswith("only bcc /usr/")


def test_captures_from_an_editable_install(editable: Path, lab_prefix: str, tmp_path: Path) -> None:
    where, result = run([editable, "-c", CAPTURE, lab_prefix], cwd=tmp_path).splitlines()

    assert Path(where) == ROOT / "bpfpath_nb/__init__.py"
    assert result == "10.0.2.2 2 3"


def test_captures_from_a_checkout(installed: Path, lab_prefix: str) -> None:
    """Nothing of ours installed: `python` in the folder of the checkout."""
    (other,) = installed.parents[1].glob("lib/python3*/site-packages")
    code = f"import sys; sys.path.append({str(other)!r})\n{CAPTURE}"

    where, result = run([installed, "-c", code, lab_prefix], cwd=ROOT).splitlines()

    assert Path(where) == ROOT / "bpfpath_nb/__init__.py"
    assert result == "10.0.2.2 2 3"
