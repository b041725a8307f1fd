"""Runs cases one after another in one lab, and notes when each of them was on.

A case's packets are told by time: everything that was first seen between its beginning and its end. So one capture
serves all cases, and what a case changes is gone before the next one begins.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bpfpath_nb.errors import LabError
from bpfpath_nb.lab.cases.case import Case
from bpfpath_nb.lab.network import Lab
from bpfpath_nb.lab.scene import Scene

FILTER = "not ip6 multicast or udp"
"""For a capture of cases: hosts that begin to use IPv6 tell each other so, whenever an interface comes up."""

_SETTLE = 0.02
"""Seconds after the traffic in which the kernel frees what it is done with."""


@contextmanager
def provoked(
    lab: Lab, cases: Iterable[Case], failed: dict[str, Exception] | None = None
) -> Iterator[dict[str, tuple[int, int]]]:
    """Provoke cases; a context manager, since what some leave behind has to stand until a capture has been stopped.

    Parameters
    ----------
    lab
        A chain of client, router and server.
    cases
        Which, of `CASES`.
    failed
        Gets the error of each case that this machine could not provoke; without it the first one is raised.

    Yields
    ------
    dict
        By each case's name when it began and ended, by the kernel's monotonic clock, in ns.
    """
    windows = {}
    with Scene(lab) as stage:
        _prepare(stage)
        for case in cases:
            load(case.modules)
            begin = time.monotonic_ns()
            scene = Scene(lab)
            try:
                case.provoke(scene)
                time.sleep(_SETTLE)
            except (OSError, LabError) as error:
                if failed is None:
                    raise
                failed[case.name] = error
            finally:
                if case.lasts:
                    stage.later(scene.close)
                else:
                    scene.close()
            time.sleep(_SETTLE)
            windows[case.name] = begin, time.monotonic_ns()
        yield windows


def _prepare(stage: Scene) -> None:
    """Let neighbours know each other, and every ICMP message be sent."""
    for ns in stage.lab.names:
        stage.sysctl(ns, ipv4__icmp_ratemask=0)
    for family in (4, 6):
        stage.lab.run("client", ["ping", "-c1", "-W2", stage.lab.address("server", family)])


def load(modules: Iterable[str]) -> None:
    """Load kernel modules, on a kernel that has some."""
    if Path("/lib/modules").is_dir():
        for module in modules:
            with suppress(OSError):
                subprocess.run(["modprobe", "-q", module], check=False, capture_output=True)
