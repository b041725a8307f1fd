"""The package as others get it: a wheel in a plain venv, an editable install, a checkout. Each captures a packet.

What this proves beside the rest of the tests: `bpf/` is found in each of the three, and bcc, which lies among the
distribution's Python packages, is found from a venv that sees none of those, without making the others importable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
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


NOBODY = 65534
"""Debian's user `nobody`, and its group."""

EVERYTHING = """
import os
import matplotlib
from bpfpath_nb import Recording, compare, sample
from bpfpath_nb.samples import SAMPLES

assert os.geteuid() != 0
assert "CapEff:\\t0000000000000000" in open("/proc/self/status").read()
try:
    import bcc
except ImportError:
    pass
else:
    raise AssertionError("bcc is here")
matplotlib.use("agg")

FRAMES = ("df", "packets", "paths", "functions", "transitions", "drops", "namespaces", "quality")
COMPARED = ("verdicts", "paths", "functions", "transitions", "places", "drops")
PLOTS = ("timeline", "latency", "paths", "drops", "namespaces", "heatmap")
for name in SAMPLES:
    recording = sample(name)
    for frame in FRAMES:
        assert len(getattr(recording, frame)), (name, frame)
    for picture in PLOTS:
        getattr(recording.plot, picture)().figure.savefig(f"{name}-{picture}.png")
    diagnosis = recording.diagnose()
    assert all(len(diagnosis.evidence(finding)) for finding in range(len(diagnosis)))
    router, server = (recording.query(f"namespaces.str.contains('{netns}')") for netns in ("router", "server"))
    comparison = compare(router, server)
    for frame in COMPARED:
        assert len(getattr(comparison, frame)), (name, frame)
    assert len(comparison.align()) and comparison.summary
    assert recording.text(1) and len(recording.latency(by=["layer"]))
    for export, path in {"save": "parquet", "to_pcapng": "pcapng", "to_perfetto": "pftrace", "to_json": "jsonl",
                         "report": "html"}.items():
        getattr(recording, export)(f"{name}.{path}")
        assert os.path.getsize(f"{name}.{path}"), (name, export)
recording = sample("dns")
assert len(recording.latency(by=["netns"]))
answered, dropped = (recording.query(f"verdict == '{verdict}'") for verdict in ("delivered", "dropped"))
assert (len(answered.packets), len(dropped.packets)) == (24, 3)
assert len(recording.where("udp dst port 53").packets) == 15

comparison, diagnosis = compare(answered, dropped), recording.diagnose()
assert "100 points" in str(comparison.summary)
assert "nft list ruleset" in repr(diagnosis)
for shown in (recording, comparison, diagnosis):
    assert shown._repr_html_()
recording.plot.timeline(1).figure.savefig("timeline.png")

comparison.plot()
assert Recording.load("dns.parquet").df.equals(recording.df)
assert len(recording.redact().packets) == len(recording.packets)
assert "NETFILTER_DROP" in recording.text()
print(*sorted(os.listdir()))
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
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[perfetto]"])
    return python


def _link(source: str, target: str) -> None:
    """Nobody writes to it, so it need not be a copy."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def ordinary(installed: Path, wheel: Path) -> Iterator[Path]:
    """The Python of a venv that an ordinary user may use: of the system's Python, where everybody can get to it."""
    with tempfile.TemporaryDirectory(prefix="bpfpath-ordinary-") as folder:
        place = Path(folder)
        place.chmod(0o755)
        python = place / "venv/bin/python"
        run(["/usr/bin/python3", "-m", "venv", place / "venv"])
        version = "import sys; print(sys.version_info[:2])"
        if run([python, "-c", version]) == run([installed, "-c", version]):
            (site,) = place.glob("venv/lib/python3*/site-packages")
            (other,) = installed.parents[1].glob("lib/python3*/site-packages")
            shutil.copytree(other, site, copy_function=_link, dirs_exist_ok=True)
        else:
            run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[perfetto]"])
        work = place / "work"
        work.mkdir()
        os.chown(work, NOBODY, NOBODY)
        yield python


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


def test_everything_but_capturing_needs_no_root_and_no_bcc(ordinary: Path) -> None:
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--inh-caps=-all",
            "--bounding-set=-all"]  # fmt: skip
    work = ordinary.parents[2] / "work"

    said = run([*user, "env", f"HOME={work}", ordinary, "-W", "error::ResourceWarning", "-c", EVERYTHING], cwd=work)

    files = {f"{name}.{kind}" for name in SAMPLES for kind in ("html", "jsonl", "parquet", "pcapng", "pftrace")}
    assert {"timeline.png", *files} <= set(said.split())
