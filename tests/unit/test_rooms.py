"""Who may import what, as CONTRIBUTING.md has it. Read from the source, so an import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bpfpath_nb"

OWNERS = {
    "bcc": {"tracer"},
    "pyroute2": {"tracer", "lab"},
    "matplotlib": {"plot"},
    "ipywidgets": {"widgets"},
}


def imports() -> list[tuple[Path, str]]:
    """Every module with everything that it imports, by full name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(path.relative_to(PACKAGE), alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports here are absolute"
                found.append((path.relative_to(PACKAGE), node.module or ""))
    return found


@pytest.mark.parametrize("package", OWNERS)
def test_a_heavy_package_has_its_rooms(package: str) -> None:
    strangers = {
        str(p) for p, name in imports() if name.partition(".")[0] == package and p.parts[0] not in OWNERS[package]
    }
    assert strangers == set()


def test_nobody_imports_the_tracer() -> None:
    users = {(str(p), name) for p, name in imports() if name.startswith("bpfpath_nb.tracer") and p.parts[0] != "tracer"}
    assert users == {("machine.py", "bpfpath_nb.tracer.find_bcc")}


@pytest.mark.parametrize("module", ["bpfpath_nb", "bpfpath_nb.cli", "bpfpath_nb.lab", "bpfpath_nb.doctor"])
def test_nothing_heavy_is_loaded_on_the_way(module: str) -> None:
    code = (
        f"import sys, {module}; print(*sorted({{'pandas', 'numpy', 'pyarrow', *{set(OWNERS)!r}}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
