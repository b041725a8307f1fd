"""A small record of a kernel: what this package asks of one, and nothing else.

Parsing BTF gives megabytes of which we use some kilobytes: the structures of `layout`, the functions and tracepoints
that meet a packet, the drop reasons. `reduce` takes them out of any `Types`; `ReducedTypes` answers from them as the
full BTF would. Two things are made of that:

- the cache of the running kernel (`cache.py`), since the same kernel is asked again at each start of a tracer;
- recorded facts of real kernels, with which everything here is tested without that kernel and without root.

A record is JSON, gzip-compressed where the name ends in ``.gz``. It also has the symbols of the functions in it, and
the format of the tracepoint ``skb:kfree_skb``. To record the kernel that runs, as root::

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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.kernel import layout, reasons
from bpfpath_nb.kernel.structures import Field, Structure, Types

FORMAT = 1
PACKET = "sk_buff"
KEPT_ARGUMENTS = ("struct sk_buff *", "struct neighbour *")  # a tracepoint with one of these may lead to a packet
MAX_BYTES = 32 << 20  # of a record, decompressed

_ENUMS = reasons.ENUMS


def reduce(types: Types, structures: Iterable[str] = layout.STRUCTURES) -> dict[str, Any]:
    """What we use of a kernel's or a module's types, as JSON-ready data."""
    described: dict[str, Any] = {}
    todo = list(structures)
    while todo:
        name = todo.pop()
        structure = types.structure(name) if name not in described else None
        if structure is None:
            continue
        described[name] = [structure.size, {key: list(f) for key, f in structure.fields.items()}]
        # Types without a tag are described under the member's name and belong to their parent.
        todo += [f.structure for f in structure.fields.values() if f.structure.startswith(name + ".")]
    enums = {name: types.enumeration(name) for name in _ENUMS}
    tracepoints = {name: types.tracepoint_arguments(name) for name in types.tracepoint_names()}
    return {
        "structures": described,
        "enums": {name: {str(v): n for v, n in values.items()} for name, values in enums.items() if values is not None},
        "functions": types.functions_taking(PACKET),
        "tracepoints": {n: a for n, a in tracepoints.items() if any(k in arg for k in KEPT_ARGUMENTS for arg in a)},
    }


class ReducedTypes(Types):
    """Types from what `reduce` gave. What is not in there is asked of `full`, where there is one.

    Raises
    ------
    ValueError
        The data is not of the shape that `reduce` makes.
    """

    def __init__(self, data: Mapping[str, Any], full: Callable[[], Types] | None = None) -> None:
        self._full = full
        try:
            self._structures = {str(n): _structure(d) for n, d in data["structures"].items()}
            self._enums = {str(n): {int(v): _text(t) for v, t in e.items()} for n, e in data["enums"].items()}
            self._functions = {_text(n): _number(at) for n, at in data["functions"].items()}
            self._tracepoints = {_text(n): [_text(a) for a in args] for n, args in data["tracepoints"].items()}
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"damaged record of a kernel's types: {error!r}") from error

    def structure(self, name: str) -> Structure | None:
        """See `Types.structure`."""
        found = self._structures.get(name)
        return self._full().structure(name) if found is None and self._full else found

    def enumeration(self, name: str) -> dict[int, str] | None:
        """See `Types.enumeration`."""
        found = self._enums.get(name)
        return self._full().enumeration(name) if found is None and self._full and name not in _ENUMS else found

    def functions_taking(self, struct: str) -> dict[str, int]:
        """See `Types.functions_taking`; for other structures than `sk_buff` the full BTF is needed."""
        if struct == PACKET:
            return dict(self._functions)
        if self._full is None:
            raise RequirementError(f"A reduced record has only the functions that take a {PACKET}, not a {struct}.")
        return self._full().functions_taking(struct)

    def tracepoint_names(self) -> list[str]:
        """See `Types.tracepoint_names`; only those that may lead to a packet."""
        return sorted(self._tracepoints)

    def tracepoint_prototype(self, name: str) -> list[str] | None:
        """See `Types.tracepoint_prototype`."""
        found = self._tracepoints.get(name)
        return self._full().tracepoint_prototype(name) if found is None and self._full else found


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise TypeError(f"{value!r} is not a plausible number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise TypeError(f"{value!r} is not a name")
    return value


def _structure(data: Any) -> Structure:
    size, fields = data
    return Structure(
        _number(size),
        {_text(n): Field(_number(b), _number(w), bool(f), _text(t), _text(s)) for n, (b, w, f, t, s) in fields.items()},
    )


def record(path: str | Path, release: str = "") -> None:
    """Record the running kernel into a file. Needs root for the addresses and for tracefs."""
    from bpfpath_nb.kernel import Kernel

    kernel = Kernel.running()
    wanted = set(kernel.functions)
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


def main(arguments: list[str] | None = None) -> int:
    """Record a kernel: the one that runs, or one from BTF files."""
    from bpfpath_nb.kernel.btf import Btf

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
