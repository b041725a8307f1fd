"""The C of one capture: the files of `bpf/`, and the filter among them.

bcc rewrites maps and contexts only in the text it is given, not in what that text includes, so the files are
put one behind another; a `#line` before each keeps the compiler's messages true. What differs between kernels
and captures comes in as macros.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bpfpath_nb.errors import RequirementError

FILES = (
    "records.h", "cpu_rings.h", "memory.h", "skipped.h", "packet.h", "place.h", "skb_map.h", "flow.h", "identity.h",
    "asked.h", "filter", "rings.h", "calls.h", "parents.h", "hop.h", "freed.h", "merging.h", "probes.h",
)  # fmt: skip
"""In the order of the unit; `filter` stands for what the packet filter was translated into."""


def folder() -> Path:
    """Where the C is: in the package (a wheel), or beside it (a checkout, an editable install).

    Raises
    ------
    RequirementError
        It is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for place in (package / "bpf", package.parent / "bpf"):
        if (place / "hop.h").is_file():
            return place
    raise RequirementError(
        f"The C sources of the probes are missing beside {package}. The installation is not whole: reinstall "
        "bpfpath_nb."
    )


def assemble(filter_source: str, macros: Mapping[str, int | str]) -> str:
    """The compilation unit as one text."""
    place = folder()
    parts = [f"#define {name} {value}\n" for name, value in macros.items()]
    for name in FILES:
        text = filter_source if name == "filter" else (place / name).read_text()
        parts.append(f'#line 1 "{name}"\n{text}\n')
    return "".join(parts)
