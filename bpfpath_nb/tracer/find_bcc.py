"""Find the distribution's bcc, from whatever Python this is, and make it importable alone.

bcc is not on PyPI: the `bcc` there is another project. Distributions install the right one for their own
interpreter (Debian: package python3-bpfcc, in /usr/lib/python3/dist-packages), where a venv, pyenv or conda
does not look. It is pure Python over `libbcc.so.0`, so any interpreter can run it. Putting all of dist-packages
on the path would drag in everything else that lies there; so only the one package is loaded, from its place,
under its own name.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from bpfpath_nb.errors import RequirementError

PLACES = (
    "/usr/lib/python3/dist-packages",
    "/usr/local/lib/python3*/dist-packages",
    "/usr/lib/python3*/site-packages",
    "/usr/lib64/python3*/site-packages",
    "/usr/local/lib/python3*/site-packages",
    "/usr/local/lib64/python3*/site-packages",
)


def is_bcc(package: Path) -> bool:
    """Whether this folder is bcc's package (and not the crystal lattices of PyPI's `bcc`)."""
    return (package / "libbcc.py").is_file() and (package / "__init__.py").is_file()


def locate() -> Path | None:
    """The folder of bcc's Python package, or None.

    First `BPFPATH_BCC` of the environment, then what this interpreter would import, then where distributions put it.
    """
    named = os.environ.get("BPFPATH_BCC")
    if named:
        return Path(named) if is_bcc(Path(named)) else None
    try:
        spec = importlib.util.find_spec("bcc")
    except (ImportError, ValueError):
        spec = None
    found = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for pattern in PLACES:
        root = Path("/")
        found += sorted((parent / "bcc" for parent in root.glob(pattern.lstrip("/"))), reverse=True)
    return next((package for package in found if is_bcc(package)), None)


def import_bcc() -> ModuleType:
    """bcc, imported.

    Raises
    ------
    RequirementError
        It is not installed, or its library does not load.
    """
    package = locate()
    if package is None:
        raise RequirementError(
            "bcc is not installed: the tracer compiles and loads its programs with it. Install the "
            "distribution's package "
            "(Debian, Ubuntu: apt install python3-bpfcc; Fedora: dnf install python3-bcc), or name its "
            "folder in BPFPATH_BCC. "
            "The `bcc` of PyPI is another project."
        )
    loaded = sys.modules.get("bcc")
    if loaded is not None and Path(str(loaded.__file__)).parent == package:
        return loaded
    spec = importlib.util.spec_from_file_location(
        "bcc", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (OSError, ImportError) as error:
        del sys.modules["bcc"]
        raise RequirementError(
            f"bcc in {package} does not load: {error}. Its library is missing or does not fit; reinstall the "
            "distribution's "
            "packages (Debian: apt install --reinstall python3-bpfcc libbpfcc)."
        ) from error
    return module
