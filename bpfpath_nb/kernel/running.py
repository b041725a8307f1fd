"""One kernel, asked in one place: the one that runs, or one from a record.

Everything is found out when it is first asked for and kept, because a tracer on tracepoints never needs the symbols,
and one that only drops packets into a list needs no module's BTF. The first question about types costs a parse of BTF,
once for each build of a kernel; after that the answer is in the cache (`cache.py`).
"""

from __future__ import annotations

import platform
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.kernel import cache, layout, reasons
from bpfpath_nb.kernel.btf import VMLINUX, Btf
from bpfpath_nb.kernel.catalogue import Catalogue
from bpfpath_nb.kernel.catalogue import load as load_catalogue
from bpfpath_nb.kernel.reduced import PACKET, ReducedTypes, reduce
from bpfpath_nb.kernel.sections import BtfError
from bpfpath_nb.kernel.structures import Types
from bpfpath_nb.kernel.symbols import Symbols

BTF_FOLDER = "/sys/kernel/btf"
TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_MODULE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Kernel:
    """A kernel's types, symbols, drop reasons, and the functions and tracepoints that a packet meets in it.

    Make one with `running` or `from_facts`.

    Attributes
    ----------
    release : str
        As ``uname -r`` gives it.
    build_id : str
        In hexadecimal; empty where the kernel has none.
    loaded : frozenset of str
        `loaded_modules` when it was made; what it says of modules is of then.
    """

    loaded: frozenset[str] = frozenset()

    def __init__(self, release: str, build_id: str, recorded: dict[str, Any] | None = None) -> None:
        self.release = release
        self.build_id = build_id
        self._recorded = recorded

    @classmethod
    def running(cls) -> Kernel:
        """The kernel that runs here, with the modules that are loaded now."""
        kernel = cls(platform.release(), cache.build_id())
        kernel.loaded = loaded_modules()
        return kernel

    @classmethod
    def from_facts(cls, recorded: dict[str, Any]) -> Kernel:
        """A recorded kernel, from what `facts.read` gave; `facts.load` does both."""
        return cls(str(recorded.get("release", "")), str(recorded.get("build_id", "")), recorded)

    # ------------------------------------------------------------------ types

    @cached_property
    def _full(self) -> Btf:
        return Btf.load(VMLINUX)

    @cached_property
    def _kept(self) -> dict[str, Any]:
        kept = cache.load(self.build_id)
        return kept if isinstance(kept.get("modules"), dict) else {"modules": {}}

    @cached_property
    def btf(self) -> Types:
        """The types of the kernel itself. What the cache does not have is looked up in the full BTF."""
        if self._recorded is not None:
            return _checked(self._recorded["types"])
        if "types" in self._kept:
            try:
                return ReducedTypes(self._kept["types"], lambda: self._full)
            except ValueError:
                self._kept["modules"] = {}
        self._kept["types"] = reduce(self._full)
        cache.store(self.build_id, self._kept)
        return ReducedTypes(self._kept["types"], lambda: self._full)

    @cached_property
    def modules(self) -> dict[str, Types]:
        """The types of each loaded module that has BTF, by the module's name; one that cannot be read is left out."""
        if self._recorded is not None:
            return {str(n): _checked(types) for n, types in self._recorded.get("modules", {}).items()}
        found: dict[str, Types] = {}
        learnt = False
        for path in sorted(Path(BTF_FOLDER).glob("*")):
            name = path.name
            if name == "vmlinux" or not _MODULE.fullmatch(name):
                continue
            build = cache.build_id(f"/sys/module/{name}/notes/.note.gnu.build-id")
            kept = self._kept["modules"].get(build) if build else None
            try:
                if kept is not None:
                    found[name] = ReducedTypes(kept)
                    continue
            except ValueError:
                pass  # a damaged cache: parse again
            try:
                reduced = reduce(Btf.load(path, base=self._full), ())
            except RequirementError:
                continue  # the module went away while we looked, or was built against other BTF
            found[name] = ReducedTypes(reduced)
            if build:
                self._kept["modules"][build] = reduced
                learnt = True
        if learnt and "types" in self._kept:
            cache.store(self.build_id, self._kept)
        return found

    @cached_property
    def macros(self) -> dict[str, int]:
        """Offsets for the C, by macro; see `layout.macros`. Raises `RequirementError` where one is missing."""
        return layout.macros(self.btf, self.release)

    # ------------------------------------------------------------------ functions, tracepoints, symbols

    @cached_property
    def functions(self) -> dict[str, int]:
        """Functions that take a packet, of the kernel and of its modules, with the register (0-based) that holds it.

        Names are as in the source; `symbols.variants` gives what to attach to.
        """
        found: dict[str, int] = {}
        for types in (self.btf, *self.modules.values()):
            for name, position in types.functions_taking(PACKET).items():
                found.setdefault(name, position)
        return found

    @cached_property
    def function_modules(self) -> dict[str, str]:
        """The module of each of `functions` that is in one."""
        own = self.btf.functions_taking(PACKET)
        return {f: name for name, types in self.modules.items() for f in types.functions_taking(PACKET) if f not in own}

    @cached_property
    def untyped_functions(self) -> frozenset[str]:
        """Functions of the catalogue that are in modules without BTF (all modules before 5.11), as they are loaded now.

        They take a packet, as all of the catalogue do; as which argument, nothing on the machine tells.
        """
        symbols = self.symbols
        found = set()
        for function in self.catalogue.functions.values():
            for name in (function.name, *function.aliases):
                modules = {module for exact in symbols.variants(name) for module in symbols.modules(exact)}
                if name not in self.functions and any(module and module not in self.modules for module in modules):
                    found.add(name)
        return frozenset(found)

    @cached_property
    def tracepoints(self) -> dict[str, int]:
        """Tracepoints that pass a packet, or what the catalogue's `via` starts from, with that argument's position."""
        found: dict[str, int] = {}
        for types in (self.btf, *self.modules.values()):
            found.update(types.tracepoints_taking(PACKET))
            for tracepoint in self.catalogue.tracepoints.values():
                if tracepoint.via and tracepoint.name not in found:
                    position = types.tracepoints_taking(tracepoint.via.partition(".")[0]).get(tracepoint.name)
                    if position is not None:
                        found[tracepoint.name] = position
        return found

    def tracepoint_arguments(self, name: str) -> list[str]:
        """Types of what a tracepoint passes, of the kernel or of a module. Raises `MissingTypeError`."""
        for types in self.modules.values() if self.btf.tracepoint_prototype(name) is None else ():
            if types.tracepoint_prototype(name) is not None:
                return types.tracepoint_arguments(name)
        return self.btf.tracepoint_arguments(name)

    @cached_property
    def symbols(self) -> Symbols:
        """Functions by name and address, as of now; modules loaded later are not in it."""
        if self._recorded is not None:
            return Symbols(str(self._recorded.get("symbols", "")).encode())
        return Symbols.load()

    # ------------------------------------------------------------------ names

    @cached_property
    def catalogue(self) -> Catalogue:
        """What is known of functions, independent of this kernel."""
        return load_catalogue()

    @cached_property
    def kfree_skb_format(self) -> str:
        """The format of the tracepoint ``skb:kfree_skb`` in tracefs; empty where it cannot be read."""
        if self._recorded is not None:
            return str(self._recorded.get("kfree_skb", ""))
        for root in TRACEFS:
            try:
                return Path(root, "events/skb/kfree_skb/format").read_text(encoding="ascii", errors="replace")
            except OSError:
                continue
        return ""

    @cached_property
    def reasons(self) -> dict[int, str]:
        """Names of drop reasons by number; empty on kernels that have none."""
        known = reasons.names(self.btf, self.modules.values())
        return known or reasons.names(self.btf, self.modules.values(), self.kfree_skb_format)


def loaded_modules() -> frozenset[str]:
    """The modules that are loaded, each with the address where it lies; empty on a kernel without modules."""
    try:
        lines = Path("/proc/modules").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        f"{words[0]} {words[5]}" for line in lines if len(words := line.split()) > 5 and words[4] == "Live"
    )


def _checked(data: Any) -> Types:
    try:
        return ReducedTypes(data)
    except ValueError as error:
        raise BtfError(f"The record of this kernel is damaged: {error}.") from error
