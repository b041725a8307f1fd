"""Which function an address is in, and which addresses a function has: `/proc/kallsyms`.

A line of kallsyms is 16 hexadecimal digits, a space, a letter for the kind, a space, the name, and for a module's
symbol a tab and ``[module]``. There are 120,000 to 250,000 of them. All addresses are at a fixed place in their line,
so they are read as one array; names are cut out only when a name is asked for.

Three things make names and addresses differ:

- one name, several addresses: static functions of the same name in several files; - one address, several names:
aliases. The one shown is a global symbol rather than a local one, then the one with the fewest leading underscores; -
one function, several names: the compiler clones functions and adds a suffix (``.isra.0``, ``.constprop.0``,
``.part.0``, ``.cold``,
  ``.llvm.123``). `fold` takes it off, for showing; attaching needs the name as it is, which `Symbols.variants` gives.

To a process without privilege all addresses read as zero (`kernel.kptr_restrict`); `Symbols.hidden` tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bpfpath_nb.errors import RequirementError

KALLSYMS = "/proc/kallsyms"
MAX_BYTES = 512 << 20

_ADDRESS = 16  # hexadecimal digits
_NAME = _ADDRESS + 3  # where the name begins in its line
_FARTHEST = 1 << 20  # bytes past a symbol's address at which it no longer explains an address
_SUFFIX = re.compile(r"(?:\.(?:isra|constprop|part|cold|llvm|lto_priv|clone|warm)(?:\.[0-9a-f]+)?)+$")
_PADDING = ("__pfx_", "__cfi_")  # symbols for the bytes before a function, not for code that runs

_NIBBLE = np.full(256, 255, np.uint8)
_NIBBLE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_NIBBLE[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


def fold(name: str) -> str:
    """The name in the source of a function, without the suffixes that a compiler adds.

    Examples
    --------
    >>> fold("ip_rcv_finish_core.isra.0"), fold("tcp_ack.constprop.0.cold"), fold("ip_rcv")
    ('ip_rcv_finish_core', 'tcp_ack', 'ip_rcv')
    """
    return _SUFFIX.sub("", name) if "." in name else name


class Symbol(NamedTuple):
    """Where an address is: `offset` bytes into function `name` of `module` (empty: the kernel itself).

    An address that is in no function has an empty name, and itself as the offset.
    """

    name: str
    offset: int
    module: str


class Symbols:
    """The functions of a kernel and its modules by name and by address."""

    def __init__(self, data: bytes) -> None:
        if data and not data.endswith(b"\n"):
            data += b"\n"
        letters = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(letters == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        if len(ends) and bool((ends - starts <= _NAME).any()):
            raise RequirementError("The list of kernel symbols is damaged: a line is too short.")
        kinds = letters[starts + _ADDRESS + 1]
        keep = np.isin(kinds, np.frombuffer(b"tTwW", np.uint8))  # functions; the rest is data
        starts, ends, kinds = starts[keep], ends[keep], kinds[keep]
        self.addresses_by_line = self._numbers(letters, starts)
        self._data = data.decode("latin-1")
        self._local = (kinds == ord("t")) | (kinds == ord("w"))
        self._starts = starts
        tabs = np.flatnonzero(letters == ord("\t"))
        at = np.searchsorted(starts, tabs, "right") - 1
        inside = (at >= 0) & (tabs < (ends[at] if len(ends) else tabs))
        self._name_ends, self._line_ends = ends.copy(), ends
        self._name_ends[at[inside]] = tabs[inside]
        self._line_by_name: dict[str, int] | None = None
        self._copies: dict[str, list[int]] = {}
        self._lines_by_folded: dict[str, list[str]] | None = None
        self._order: npt.NDArray[np.int64] | None = None
        self._sorted = np.empty(0, np.uint64)

    @staticmethod
    def _numbers(letters: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        found = np.zeros(len(starts), np.uint64)
        damaged = np.zeros(len(starts), bool)
        for digit in range(_ADDRESS):
            nibble = _NIBBLE[letters[starts + digit]]
            damaged |= nibble > 15
            found = (found << np.uint64(4)) | nibble.astype(np.uint64)
        if damaged.any():
            raise RequirementError("The list of kernel symbols is damaged: an address is not a number of 16 digits.")
        return found

    @classmethod
    def load(cls, path: str | Path = KALLSYMS) -> Symbols:
        """Read the symbols of the running kernel, or a copy of them. Raises `RequirementError` where there is none."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_BYTES)
        except OSError as error:
            raise RequirementError(
                f"The kernel's list of symbols ({path}) cannot be read: {error.strerror}. "
                "It needs a kernel built with CONFIG_KALLSYMS=y, and /proc mounted."
            ) from error
        return cls(data)

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name()

    @property
    def hidden(self) -> bool:
        """Whether the kernel hides addresses from this process: names are known, addresses are not."""
        return len(self) > 0 and not self.addresses_by_line.any()

    def _name(self, line: int) -> str:
        return self._data[int(self._starts[line]) + _NAME : int(self._name_ends[line])]

    def _module(self, line: int) -> str:
        return self._data[int(self._name_ends[line]) : int(self._line_ends[line])].strip("\t []")

    def _by_name(self) -> dict[str, int]:
        """The last line of each name. Nearly all names have one line only; `_copies` has those that have more."""
        if self._line_by_name is None:
            data = self._data
            cuts = zip((self._starts + _NAME).tolist(), self._name_ends.tolist(), strict=True)
            names = [data[start:end] for start, end in cuts]
            self._line_by_name = dict(zip(names, range(len(names)), strict=True))
            if len(self._line_by_name) < len(names):
                last = np.fromiter(map(self._line_by_name.__getitem__, names), np.int64, len(names))
                for line in np.flatnonzero(last != np.arange(len(names))).tolist():
                    self._copies.setdefault(names[line], []).append(line)
        return self._line_by_name

    def _lines(self, name: str) -> list[int]:
        last = self._by_name().get(name)
        return [] if last is None else [*self._copies.get(name, ()), last]

    def names(self) -> Iterable[str]:
        """All names of functions, compiler suffixes included, each once."""
        return self._by_name().keys()

    def addresses(self, name: str) -> list[int]:
        """All addresses of a function, by its exact name; empty where there is none."""
        return [int(self.addresses_by_line[line]) for line in self._lines(name)]

    def variable(self, name: str) -> int | None:
        """The address of a variable of the kernel's own, of a CPU's the offset from what `__per_cpu_offset` says; None
        where the kernel does not list variables (CONFIG_KALLSYMS_ALL), has none of that name, or hides addresses."""
        at = -1
        while not self.hidden and (at := self._data.find(f" {name}\n", at + 1)) >= 0:
            line = self._data[max(0, at - _ADDRESS - 2) : at]
            if len(line) == _ADDRESS + 2 and line[-1] in "aAbBdDrRV":
                return int(line[:_ADDRESS], 16)
        return None

    def spans(self, name: str) -> list[tuple[int, int]]:
        """Where each copy of a function begins and where the next function does; empty where there is none, or
        hidden."""
        if self.hidden:
            return []
        everything = self._starts_of_all
        found = []
        for start in self.addresses(name):
            following = int(np.searchsorted(everything, np.uint64(start), "right"))
            if following < len(everything):
                found.append((start, int(everything[following])))
        return found

    @cached_property
    def _starts_of_all(self) -> npt.NDArray[np.uint64]:
        return np.unique(self.addresses_by_line)

    def modules(self, name: str) -> list[str]:
        """For each of `addresses`, the module it is in; empty for the kernel itself."""
        return [self._module(line) for line in self._lines(name)]

    def variants(self, folded: str) -> list[str]:
        """The exact names behind a folded one, without ``.cold`` parts, which are no functions of their own.

        ``["ip_rcv_finish_core.isra.0"]`` for ``"ip_rcv_finish_core"``; the plain name first where it exists.
        """
        if self._lines_by_folded is None:
            self._lines_by_folded = {}
            for name in self._by_name():
                if "." in name and not name.endswith(".cold"):
                    self._lines_by_folded.setdefault(fold(name), []).append(name)
        plain = [folded] if folded in self._by_name() else []
        return plain + sorted(self._lines_by_folded.get(folded, []))

    def resolve(self, addresses: Iterable[int] | npt.NDArray[np.uint64]) -> list[Symbol]:
        """The function that each address is in.

        Parameters
        ----------
        addresses
            Kernel addresses; each distinct one is looked up once.
        """
        asked = np.asarray(addresses if isinstance(addresses, np.ndarray) else list(addresses), np.uint64)
        if self._order is None:
            self._order = np.argsort(self.addresses_by_line, kind="stable")
            self._sorted = self.addresses_by_line[self._order]
        distinct, back = np.unique(asked, return_inverse=True)
        found = [self._nearest(int(address)) for address in distinct.tolist()] if not self.hidden else []
        if not found:
            found = [Symbol("", int(address), "") for address in distinct.tolist()]
        return [found[index] for index in back.reshape(-1).tolist()]

    def _nearest(self, address: int) -> Symbol:
        assert self._order is not None
        last = int(np.searchsorted(self._sorted, np.uint64(address), "right")) - 1
        while last >= 0:
            base = int(self._sorted[last])
            if address - base > _FARTHEST:
                break
            first = int(np.searchsorted(self._sorted, np.uint64(base), "left"))
            lines = [int(line) for line in self._order[first : last + 1]]
            named = [(self._name(line), line) for line in lines]
            named = [(name, line) for name, line in named if not name.startswith(_PADDING)]
            if named:
                name, line = min(
                    named, key=lambda n: (bool(self._local[n[1]]), len(n[0]) - len(n[0].lstrip("_")), len(n[0]), n[0])
                )
                return Symbol(name, address - base, self._module(line))
            last = first - 1
        return Symbol("", address, "")
