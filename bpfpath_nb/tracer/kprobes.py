"""Kernel functions, by kprobes: the upper rungs of the ladder.

There is one program for all functions, and a lighter one for those where no packet's path begins; each hit tells by a
cookie which function it is and in which register the packet lies. Two ways lead there, the better one that the kernel
takes is used:

- kprobe.multi: one BPF link for all functions, through ftrace (5.18, where CONFIG_FPROBE is on). A link is
refused as a whole when one function in it cannot be traced, so a refused list is halved until the culprits are
found; with tracefs at hand they are known before.
- single kprobes: a perf event for each function. Each costs the kernel some waiting for RCU when it goes, so
many are opened and closed at once by several threads.

Returns of functions come in the same two ways, and in a better one on kernels that have it (6.10): a session runs one
program at the entry and at the return, and the program says at the entry whether it wants the return; so functions that
a packet passes which nobody follows do not pay for it.

Functions are given by address: a name may stand for several copies, and all of them are meant.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.kernel import Symbols
from bpfpath_nb.tracer.cookies import Cookies
from bpfpath_nb.tracer.syscall import (
    KPROBE_MULTI,
    KPROBE_MULTI_RETURN,
    KPROBE_SESSION,
    link_create_kprobe_multi,
    link_create_perf,
    perf_event_open_kprobe,
    perf_event_set_bpf,
)

PERF_TYPE = Path("/sys/bus/event_source/devices/kprobe/type")
TRACEABLE = ("/sys/kernel/tracing/available_filter_functions", "/sys/kernel/debug/tracing/available_filter_functions")
THREADS = 32
HIGHEST = os.environ.get("BPFPATH_KPROBES", "")
"""``kprobe.multi`` or ``kprobe``: the highest rung to try; for comparing, and for tests."""

ENTRY, PASSING, RETURN, SESSION = "kprobe", "kprobe_passing", "kprobe_return", "kprobe_session"
"""The programs: for entries, for those of functions where no path begins, for returns, for entries and returns."""

Load = Callable[[str, int | None], int]
"""Loads a program for an attach type (None: the ordinary one); its descriptor."""


@dataclass(frozen=True)
class Target:
    """One function to attach to: all copies of it, each by its exact symbol (``ip_rcv_core.isra.0``) and address."""

    name: str
    copies: tuple[tuple[str, int], ...]
    cookie: int
    passing: bool = False
    """No path begins here, and its return is not traced."""


def perf_type() -> int | None:
    """The number of the kprobe kind of perf events; None on a kernel without kprobes."""
    try:
        return int(PERF_TYPE.read_text())
    except (OSError, ValueError):
        return None


def traceable() -> set[str] | None:
    """The functions that ftrace can trace; None where that cannot be read."""
    for path in TRACEABLE:
        try:
            lines = Path(path).read_bytes().decode("ascii", "replace").splitlines()
        except OSError:
            continue
        if lines:
            return {line.split(" ", 1)[0] for line in lines}
    return None


def registers(layout: Mapping[str, int], machine: str) -> dict[str, int]:
    """Where in `struct pt_regs` the first five arguments and the address are, as macros for the C, in bytes.

    Raises
    ------
    RequirementError
        A machine whose calling convention is not known here.
    """
    if machine == "x86_64":
        names = [f"pt_regs__{name}" for name in ("di", "si", "dx", "cx", "r8", "ip", "sp")]
        places = [layout.get(name) for name in names]
    elif machine == "aarch64":
        first = layout.get("pt_regs__regs")
        places = [None if first is None else first + 8 * number for number in range(5)]
        places += [layout.get("pt_regs__pc"), layout.get("pt_regs__sp")]
    else:
        places = [None]
    if any(place is None for place in places):
        raise RequirementError(f"How functions take their arguments on {machine} is not known to bpfpath_nb.")
    keys = [*(f"REGISTER_{number}" for number in range(5)), "REGISTER_IP", "REGISTER_SP"]
    found = {key: place for key, place in zip(keys, places, strict=True) if place is not None}
    # A return on x86 takes its address from the stack.
    return {**found, "RETURN_POPS": 8 if machine == "x86_64" else 0}


def skipping(symbols: Symbols) -> dict[str, str]:
    """Where the kernel keeps whether it skips programs of functions (bpf/skipped.h); empty where it does not say."""
    names = {
        "PER_CPU_OFFSETS": "__per_cpu_offset", "BPF_PROG_ACTIVE": "bpf_prog_active", "CURRENT_KPROBE": "current_kprobe"
    }  # fmt: skip
    found = {macro: symbols.variable(name) for macro, name in names.items()}
    return {} if None in found.values() else {macro: f"{address:#x}ull" for macro, address in found.items()}


class Kprobes:
    """Programs on kernel functions.

    Parameters
    ----------
    load
        Loads a program.
    cookies
        Where the program looks for the cookies.
    returns
        Trace the returns of the functions too. Needs cookies that the kernel carries.

    Attributes
    ----------
    kind
        ``"kprobe.session"``, ``"kprobe.multi"`` or ``"kprobe"``, the latter two with the way in which returns are
        traced; empty while nothing is attached.
    programs
        Descriptors of the programs that are attached.
    seconds
        How long the kernel took to attach them.
    """

    def __init__(self, load: Load, cookies: Cookies, *, returns: bool = False) -> None:
        self._load = load
        self._cookies = cookies
        self._returns = returns
        self._descriptors: list[int] = []
        self.kind = ""
        self.programs: list[int] = []
        self.seconds = 0.0

    def attach(self, targets: Sequence[Target]) -> dict[str, str]:
        """Attach to all that can be; why not, by name of those that cannot."""
        if not targets:
            return {}
        if HIGHEST != "kprobe":
            try:
                return self._attach_multi(targets)
            except OSError:
                self.close()
                if self._cookies.carried:
                    self._cookies.forget()
        return self._attach_single(targets)

    def close(self) -> None:
        """Detach."""
        descriptors, self._descriptors, self.programs = self._descriptors, [], []
        with _threads(len(descriptors)) as run:
            run(_close, descriptors)

    # -- kprobe.multi

    def _attach_multi(self, targets: Sequence[Target]) -> dict[str, str]:
        known = traceable()
        pairs = [
            (address, target.cookie, target.name)
            for target in targets
            for symbol, address in target.copies
            if known is None or symbol in known
        ]
        if not pairs:
            raise OSError("ftrace can trace none of the functions")
        traced = {name for _, _, name in pairs}
        refused = {target.name: "ftrace cannot trace it" for target in targets if target.name not in traced}
        if self._cookies.carried:
            self._cookies.of_multi({address: cookie for address, cookie, _ in pairs})
        if self._returns and HIGHEST != "kprobe.multi":
            try:
                return refused | self._attach_session(pairs)
            except OSError:
                self.close()
        passing = {target.cookie for target in targets if target.passing}
        # A kernel without kprobe.multi refuses any list; one that has it takes at least some part of this one.
        self.kind = "kprobe.multi"
        for name, chosen in (
            (ENTRY, [pair for pair in pairs if pair[1] not in passing]),
            (PASSING, [pair for pair in pairs if pair[1] in passing]),
        ):
            if chosen:
                self.programs.append(self._load(name, KPROBE_MULTI))
                refused |= self._link(self.programs[-1], chosen)
        if self._returns:
            program = self._load(RETURN, KPROBE_MULTI)
            self._link(program, [pair for pair in pairs if pair[2] not in refused], flags=KPROBE_MULTI_RETURN)
            self.kind = "kprobe.multi, kretprobe.multi"
            self.programs.append(program)
        return refused

    def _attach_session(self, pairs: list[tuple[int, int, str]]) -> dict[str, str]:
        program = self._load(SESSION, KPROBE_SESSION)
        refused = self._link(program, pairs, attach_type=KPROBE_SESSION)
        self.kind, self.programs = "kprobe.session", [program]
        return refused

    def _link(
        self, program: int, pairs: list[tuple[int, int, str]], *, attach_type: int = KPROBE_MULTI, flags: int = 0
    ) -> dict[str, str]:
        """Attach to all that can be; why not, by name of those that cannot.

        Raises
        ------
        OSError
            None can be.
        """
        taken: list[int] = []

        def attach(pairs: list[tuple[int, int, str]]) -> dict[str, str]:
            try:
                addresses, cookies = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
                taken.append(link_create_kprobe_multi(program, addresses, cookies, attach_type, flags))
                return {}
            except OSError as error:
                if len(pairs) == 1:
                    if not taken and pairs[0] is last:
                        raise
                    return {pairs[0][2]: str(error)}
                half = len(pairs) // 2
                return attach(pairs[:half]) | attach(pairs[half:])

        last = pairs[-1]
        started = time.monotonic()
        refused = attach(pairs)
        self.seconds += time.monotonic() - started
        self._descriptors += taken
        return refused

    # -- single kprobes

    def _attach_single(self, targets: Sequence[Target]) -> dict[str, str]:
        kind = perf_type()
        if kind is None:
            return dict.fromkeys((target.name for target in targets), "this kernel has no kprobes")
        entries = {
            passing: self._load(PASSING if passing else ENTRY, None)
            for passing in {target.passing for target in targets}
        }
        program = self._load(RETURN, None) if self._returns else None
        pairs = [(address, target) for target in targets for _, address in target.copies]
        if not self._cookies.carried:
            self._cookies.of_single({address: target.cookie for address, target in pairs})
        refused: dict[str, str] = {}
        attached: list[int] = []

        def attach(pair: tuple[int, Target]) -> None:
            address, target = pair
            opened: list[int] = []
            try:
                if program is not None:
                    self._open_single(opened, program, kind, address, target.cookie, returns=True)
                self._open_single(opened, entries[target.passing], kind, address, target.cookie)
            except OSError as error:
                refused[target.name] = str(error)
                for descriptor in reversed(opened):
                    os.close(descriptor)
                return
            attached.extend(reversed(opened))

        started = time.monotonic()
        with _threads(len(pairs)) as run:
            run(attach, pairs)
        self.seconds += time.monotonic() - started
        self._descriptors += attached
        if attached:
            self.kind, self.programs = "kprobe", list(entries.values())
            if program is not None:
                self.kind = "kprobe, kretprobe"
                self.programs.append(program)
        return refused

    def _open_single(
        self, opened: list[int], program: int, kind: int, address: int, cookie: int, *, returns: bool = False
    ) -> None:
        opened.append(perf_event_open_kprobe(kind, address, returns=returns))
        if self._cookies.carried:
            opened.append(link_create_perf(program, opened[-1], cookie))
        else:
            perf_event_set_bpf(opened[-1], program)


def _close(descriptor: int) -> None:
    os.close(descriptor)


@contextmanager
def _threads(tasks: int) -> Iterator[Callable[..., None]]:
    """Run a call for each of a list, in as many threads as pay. What waits for RCU waits together."""
    if tasks < 2:

        def plain(call: Callable[..., None], items: Sequence[object]) -> None:
            for item in items:
                call(item)

        yield plain
        return
    with ThreadPoolExecutor(min(THREADS, tasks)) as pool:

        def run(call: Callable[..., None], items: Sequence[object]) -> None:
            for _ in pool.map(call, items):
                pass

        yield run
