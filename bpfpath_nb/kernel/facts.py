"""A small record of a kernel: its reduced types, the symbols of the functions in them, the format of ``skb:kfree_skb``.

With records of real kernels everything in this room is tested without those kernels and without root. A record is JSON,
gzip-compressed where the name ends in ``.gz``; stdlib and numpy are enough to make one. To record the kernel that runs,
as root::

    python -m bpfpath_nb.kernel.facts 6.18.json.gz

To record one that does not run, from files (no symbols then)::

    python -m bpfpath_nb.kernel.facts 6.1.json.gz --release 6.1.0-50-amd64 --btf vmlinux.btf --module
    nf_conntrack=nf_conntrack.btf

where the files come from a distribution's package: unpack it (``dpkg -x``); in ``vmlinuz`` find the compressed kernel
by its first bytes (``fd377a585a00`` xz, ``28b52ffd`` zstd, ``1f8b08`` gzip) and decompress from there; the section
``.BTF`` of the ELF file that this gives, and of a module's ``.ko``, is the file asked for.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.kernel.btf import Btf
from bpfpath_nb.kernel.reduced import reduce
from bpfpath_nb.kernel.running import Kernel

FORMAT = 1
MAX_BYTES = 32 << 20  # of a record, decompressed


def record(path: str | Path, release: str = "") -> None:
    """Record the running kernel into a file. Needs root for the addresses and for tracefs."""
    kernel = Kernel.running()
    wanted = kernel.functions.keys() | kernel.untyped_functions
    lines = []
    for name in sorted(wanted):
        for exact in kernel.symbols.variants(name):
            for address, module in zip(kernel.symbols.addresses(exact), kernel.symbols.modules(exact), strict=True):
                lines.append((address, f"{address:016x} t {exact}" + (f"\t[{module}]" if module else "")))
    lines.sort()
    write(
        path,
        {
            "release": release or kernel.release,
            "build_id": kernel.build_id,
            "types": reduce(kernel.btf),
            "modules": {name: reduce(types, ()) for name, types in kernel.modules.items()},
            "symbols": "".join(f"{line}\n" for _, line in lines),
            "kfree_skb": kernel.kfree_skb_format,
        },
    )


def write(path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write facts to a file, compressed where its name ends in ``.gz``; the same facts give the same bytes."""
    data = json.dumps({"format": FORMAT, **facts}, separators=(",", ":"), sort_keys=True).encode()
    Path(path).write_bytes(gzip.compress(data, mtime=0) if str(path).endswith(".gz") else data)


def read(path: str | Path) -> dict[str, Any]:
    """Read what `write` wrote.

    Raises
    ------
    RequirementError
        The file cannot be read, or is not a record of a kernel.
    """
    try:
        with gzip.open(path) if str(path).endswith(".gz") else Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        facts = json.loads(data) if len(data) <= MAX_BYTES else None
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise RequirementError(f"{path} is not a readable record of a kernel: {error}.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("types"), dict):
        raise RequirementError(f"{path} is not a record of a kernel in format {FORMAT}.")
    return facts


def load(path: str | Path) -> Kernel:
    """The recorded kernel, to be asked as if it ran. Raises `RequirementError` where the file is no record."""
    return Kernel.from_facts(read(path))


def main(arguments: list[str] | None = None) -> int:
    """Record a kernel: the one that runs, or one from BTF files."""
    parser = argparse.ArgumentParser(prog="python -m bpfpath_nb.kernel.facts", description=main.__doc__)
    parser.add_argument("out", help="file to write, .json or .json.gz")
    parser.add_argument("--release", default="", help="release of the kernel, as uname -r gives it")
    parser.add_argument("--btf", help="BTF of a kernel that does not run here")
    parser.add_argument("--module", action="append", default=[], metavar="NAME=FILE", help="BTF of one of its modules")
    options = parser.parse_args(arguments)
    if options.btf is None:
        record(options.out, options.release)
        return 0
    vmlinux = Btf.load(options.btf)
    modules = dict(entry.split("=", 1) for entry in options.module)
    write(
        options.out,
        {
            "release": options.release,
            "build_id": "",
            "types": reduce(vmlinux),
            "modules": {name: reduce(Btf.load(path, base=vmlinux), ()) for name, path in modules.items()},
            "symbols": "",
            "kfree_skb": "",
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
