"""Everything of one capture that hangs in the kernel: programs, maps, links. Closing it leaves nothing.

What is attached is pushed on one stack and comes off in the reverse order. So it does not matter where an
attempt fails: what was attached until then goes the same way.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from bpfpath_nb.errors import InterfaceError, OptionError, RequirementError
from bpfpath_nb.kernel import Kernel, loaded_modules
from bpfpath_nb.kernel.layout import CAST
from bpfpath_nb.schema import FACTS_DTYPE
from bpfpath_nb.tracer import cost, probes, tc
from bpfpath_nb.tracer.cookies import MACRO, Cookies
from bpfpath_nb.tracer.counters import Counters
from bpfpath_nb.tracer.cpu_rings import CpuRings
from bpfpath_nb.tracer.deliveries import Deliveries
from bpfpath_nb.tracer.followed import Followed
from bpfpath_nb.tracer.kprobes import Kprobes, Target, perf_type
from bpfpath_nb.tracer.netfilter import Hooks
from bpfpath_nb.tracer.places import Change, Namespace, Places
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.ring import EventRing, Ring
from bpfpath_nb.tracer.syscall import NETFILTER as NETFILTER_ATTACH
from bpfpath_nb.tracer.syscall import raw_tracepoint_open
from bpfpath_nb.tracer.toolchain import KPROBE, NETFILTER, RAW_TRACEPOINT, SCHED_CLS, Program
from bpfpath_nb.tracer.unit import unit

TOWARDS_SOCKETS = ("nf_input", "__udp_enqueue_schedule_skb", "sock_queue_rcv_skb_reason", "sock_queue_rcv_skb")
"""Where a datagram is seen last before it waits for its reader."""


class _NoKprobesError(Exception):
    """The kernel has kprobes, and lets us have none."""


class Attachment:
    """A capture's programs, attached but not armed.

    Parameters
    ----------
    request
        What is asked for.
    kernel
        What the kernel offers.

    Attributes
    ----------
    kernel
        As it is with the modules that are loaded now.
    events, facts
        The rings.
    counters
        What the kernel side counts; arms it too.
    deliveries
        Finds out which packets were read.
    devices
        Rows of `schema.DEVICES` that were not told yet.
    refused
        What was asked for and cannot be traced here; it grows while places come.
    counted
        Descriptors of the programs whose skipped runs lose a hop.

    Raises
    ------
    BpfpathError
        Of the type that fits. Nothing stays attached.
    """

    def __init__(self, request: Request, kernel: Kernel) -> None:
        self._request = request
        self.kernel = kernel
        self._undo = ExitStack()
        try:
            try:
                self._attach(with_kprobes=perf_type() is not None)
            except _NoKprobesError:
                self.close()
                self._attach(with_kprobes=False)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Detach in the reverse order."""
        self._undo.close()

    def start_record(self) -> dict[str, Any]:
        """What only the attachment knows of `schema.START_RECORD`."""
        return {
            "filter": self._request.filter,
            "options": self._request.record(),
            "functions": [probe.record() for probe in self._plan.probes],
            "refused": self.refused,
            "reasons": {str(number): name for number, name in self.kernel.reasons.items()},
            "readers": sorted(self.kernel.catalogue.readers),
            "timing": self._timing,
            "cost": self._cost,
            "ladder": {
                "functions": self._kprobes.kind if self._kprobes else "tracepoint",
                "tc": self._tc.kind if self._tc else "none",
            },
        }

    def look_around(self, seen: set[int]) -> None:
        """Join namespaces and interfaces that came since the last time, leave those that went.

        Parameters
        ----------
        seen
            Namespaces that events came from. An unknown one is looked for at once.
        """
        unknown = bool(seen - self._places.known.keys() - self._looked_for)
        self._looked_for |= seen
        for change in self._places.changes(unknown=unknown):
            self._follow(change)
        self._tell_unreachable()

    def look_at_modules(self) -> None:
        """Attach to what was asked for and has come with a module since the last time."""
        if loaded_modules() != self.kernel.loaded:
            self.kernel = Kernel.running()
            if self._plan.awaited and self._kprobes is not None:
                self._attach_awaited()

    # -- the steps of attaching

    def _attach(self, *, with_kprobes: bool) -> None:
        request = self._request
        self.devices: list[tuple[int, int, int, str]] = []
        self.counted: list[int] = []
        self._looked_for: set[int] = {0}
        self._told: set[int] = set()
        if request.returns:
            self._check_returns(with_kprobes=with_kprobes)
        text, self._plan = unit(request, self.kernel, with_kprobes=with_kprobes)
        self.refused = self._plan.refused
        self._places = Places(request.namespaces)
        self._undo.callback(self._places.close)
        self._check_interfaces()
        started = time.monotonic()
        self._program = Program(text, cast=self.kernel.btf.type_id(CAST))
        self._timing = {"compile": time.monotonic() - started}
        self._undo.callback(self._program.close)
        self._followed = Followed(self._program)
        self._undo.callback(self._followed.close)
        try:
            self.events: CpuRings | EventRing = CpuRings(self._program)
        except KeyError:
            self.events = EventRing(self._program, request.events_ring)
        self._undo.callback(self.events.close)
        self.counters = Counters(self._program, self.events)
        self._undo.callback(self.counters.close)
        self.facts = Ring(self._program.map("facts_ring").map_fd, request.facts_ring, FACTS_DTYPE)
        self._undo.callback(self.facts.close)
        if request.namespaces is not None:
            table = self._program.map("wanted_namespaces")
            for inum in self._places.known:
                table[table.Key(inum)] = table.Leaf(1)
        self._attach_kprobes()
        self._attach_tracepoints()
        self._attach_netfilter()
        self._attach_tc()
        self._measure_cost()
        towards_sockets = [func for func, probe in enumerate(self._plan.probes) if probe.name in TOWARDS_SOCKETS]
        self.deliveries = Deliveries(self._program, self._followed, towards_sockets)

    def _check_returns(self, *, with_kprobes: bool) -> None:
        if not with_kprobes:
            raise RequirementError(
                "The returns of functions are traced by kretprobes, and this kernel has no kprobes (or lets us have "
                "none). Boot a kernel with CONFIG_KPROBES, such as Debian's, trace on another host with "
                "on='ssh://root@host', or leave `returns` out: `gap` tells the time from function to function."
            )
        if MACRO not in self.kernel.macros:
            raise RequirementError(
                f"Kernel {self.kernel.release} does not tell a return probe which function it is of; that came with "
                "5.15. Boot a newer kernel, or leave `returns` out: `gap` tells the time from function to function."
            )
        if self._request.functions == "drops":
            raise OptionError("With functions='drops' no function is traced, so none returns: leave `returns` out.")

    def _check_interfaces(self) -> None:
        wanted = self._request.interfaces or []
        there = {name for namespace in self._places.known.values() for name in namespace.list_devices().values()}
        missing = [name for name in wanted if name not in there]
        if missing:
            raise InterfaceError(
                f"There is no network interface {missing[0][:64]!r} in the namespaces that are traced. There are: "
                f"{', '.join(sorted(there)[:20])}. `ip link` shows them; in another namespace: `ip -n NAMESPACE link`."
            )

    def _attach_kprobes(self) -> None:
        self._kprobes: Kprobes | None = None
        kprobes = self._plan.of_kind("kprobe")
        planned = [probe for probe in kprobes if probe.cookie and probe not in self._plan.awaited]
        if not planned:
            return
        targets = []
        for probe in planned:
            if copies := self._copies(probe.target):
                targets.append(Target(probe.target, copies, probe.cookie, self._is_passing(probe)))
            else:
                self._refuse(probe.target, OSError("inlined by the compiler, or in a module that is not loaded"))

        def load(function: str, attach_type: int | None) -> int:
            return self._program.load(function, KPROBE, attach_type)

        cookies = Cookies(self._program, carried=MACRO in self.kernel.macros)
        self._undo.callback(cookies.close)
        self._new_kprobes = partial(Kprobes, load, cookies, returns=self._request.returns)
        self._kprobes = self._new_kprobes()
        self._undo.callback(self._kprobes.close)
        started = time.monotonic()
        refused = self._kprobes.attach(targets)
        self._timing |= {"kprobes": time.monotonic() - started, "attach": self._kprobes.seconds}
        for name, why in refused.items():
            self._refuse(name, OSError(why))
        if not self._kprobes.programs:
            raise _NoKprobesError
        self.counted += self._kprobes.programs

    def _is_passing(self, probe: probes.Probe) -> bool:
        return not probe.entry and not self._request.returns

    def _copies(self, function: str) -> tuple[tuple[str, int], ...]:
        """Symbol and address of each copy of a function."""
        symbols = self.kernel.symbols
        copies = {address: name for name in symbols.variants(function) for address in symbols.addresses(name)}
        return tuple((name, address) for address, name in copies.items())

    def _attach_awaited(self) -> None:
        """Attach to functions whose module was loaded meanwhile."""
        here = {**dict.fromkeys(self.kernel.untyped_functions, probes.NO_ARGUMENT), **self.kernel.functions}
        targets = {}
        for probe in self._plan.awaited:
            names = (probe.target, *self.kernel.catalogue.stand_ins(probe.target))
            name = next((name for name in names if name in here), probe.target)
            register = here.get(name, probes.LAST_REGISTER + 1)
            copies = self._copies(name)
            if copies and (register <= probes.LAST_REGISTER or register == probes.NO_ARGUMENT):
                cookie = probes.in_register(probe.cookie, register)
                targets[probe] = Target(probe.target, copies, cookie, self._is_passing(probe))
        if not targets:
            return
        self._plan.awaited = [probe for probe in self._plan.awaited if probe not in targets]
        kprobes = self._new_kprobes()
        self._undo.callback(kprobes.close)
        for name, why in kprobes.attach(list(targets.values())).items():
            self._refuse(name, OSError(why))
        self.counted += kprobes.programs

    def _attach_tracepoints(self) -> None:
        for probe in self._plan.of_kind("tracepoint"):
            try:
                if probe.target in probes.FREES:
                    # The kernel skips a program that interrupts itself, and here interrupts are frequent and a skipped
                    # end would give the next user of the buffer this packet's number. Of two, one always runs.
                    for _ in range(2):
                        self._attach_tracepoint(f"freed_{probe.target}", probe.target)
                elif probe.target == probes.MERGES:
                    # Behind the tracepoint's own program, which gives the packet its number.
                    self._attach_tracepoint("merging_entry", probes.HANDED_OVER)
                    self.counted.append(self._attach_tracepoint("merging_exit", probe.target))
                else:
                    self.counted.append(self._attach_tracepoint("tracepoint", probe.target, cookie=probe.cookie))
            except OSError as error:
                self._refuse(probe.target, error)

    def _attach_tracepoint(self, function: str, tracepoint: str, cookie: int | None = None) -> int:
        program = self._program.load(function, RAW_TRACEPOINT, cookie=cookie)
        self._undo.callback(os.close, raw_tracepoint_open(tracepoint, program))
        return program

    def _attach_netfilter(self) -> None:
        self._hooks: Hooks | None = None
        if not self._plan.of_kind("netfilter"):
            return
        try:
            program = self._program.load("netfilter", NETFILTER, NETFILTER_ATTACH)
        except OSError as error:
            self._refuse("netfilter hooks", error)
            return
        self._hooks = Hooks(program, self._places)
        self._undo.callback(self._hooks.close)

    def _attach_tc(self) -> None:
        self._tc: tc.Attacher | None = None
        if self._plan.of_kind("tc_ingress"):
            self._tc_programs = {
                name: self._program.load("tc", SCHED_CLS, cookie=self._plan.of_kind(name)[0].cookie)
                for name in tc.DIRECTIONS
            }
            self._tc = tc.choose(self._tc_programs, self._places)
            self._undo.callback(self._tc.close)
        for namespace in list(self._places.known.values()):
            self._join(namespace)
        self._tell_unreachable()

    def _measure_cost(self) -> None:
        self._cost: dict[str, int] = {}
        if self._tc is not None:
            with suppress(OSError):  # an estimate, which nothing depends on
                self._cost = cost.measure(
                    self._program, self.counters, self._followed, self._tc_programs["tc_ingress"], self.facts
                )

    def _refuse(self, name: str, error: OSError, instead: str = "") -> None:
        self.refused.append({"name": name, "why": str(error), "instead": instead})

    # -- places that come and go

    def _tell_unreachable(self) -> None:
        """Say once of every namespace that cannot be watched why not."""
        for inum, (name, why) in self._places.unreachable.items():
            if inum not in self._told:
                self._told.add(inum)
                self._refuse(f"tc in {name}", OSError(why))
                self.devices.append((time.monotonic_ns(), inum, 0, name))

    def _join(self, namespace: Namespace) -> None:
        self.devices.append((time.monotonic_ns(), namespace.inum, 0, namespace.name))
        if self._hooks is not None:
            try:
                self._hooks.attach(namespace)
            except OSError as error:
                self._refuse(f"netfilter hooks in {namespace.name}", error)
        for change in self._places.refresh_devices(namespace):
            self._follow(change)

    def _follow(self, change: Change) -> None:
        namespace, ifindex = change.namespace, change.ifindex
        if not change.came:  # its number may stand for another as soon as we let go of it
            gone = (0, *namespace.devices) if ifindex is None else (ifindex,)
            self.devices += [(time.monotonic_ns(), namespace.inum, number, "") for number in gone]
        if ifindex is None and change.came:
            self._join(namespace)
        elif ifindex is None:
            if self._tc is not None:
                self._tc.detach(namespace, None)
            if self._hooks is not None:
                self._hooks.detach(namespace)
        elif change.came:
            self._join_device(namespace, ifindex, namespace.devices[ifindex])
        elif self._tc is not None:
            self._tc.detach(namespace, ifindex)

    def _join_device(self, namespace: Namespace, ifindex: int, name: str) -> None:
        self.devices.append((time.monotonic_ns(), namespace.inum, ifindex, name))
        if self._request.interfaces is not None:
            if name not in self._request.interfaces:
                return
            table = self._program.map("wanted_interfaces")
            table[table.Key(namespace.inum, ifindex)] = table.Leaf(1)
        if self._tc is None:
            return
        try:
            self._tc.attach(namespace, ifindex)
        except OSError as error:
            if _is_there(namespace, ifindex):  # else it went as it came
                self._refuse(f"tc on {name} in {namespace.name}", error)


def _is_there(namespace: Namespace, ifindex: int) -> bool:
    try:
        return ifindex in namespace.list_devices()
    except OSError:
        return True  # what cannot be asked is not known to be gone
