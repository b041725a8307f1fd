"""What a case is: a fault, its traffic, and what the kernel makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bpfpath_nb.lab.scene import Scene

Provoke = Callable[[Scene], None]


@dataclass(frozen=True)
class Case:
    """One real cause, provoked on purpose.

    Attributes
    ----------
    name
        By which it is called up.
    what
        What is wrong, in a few words.
    provoke
        Sets the fault up in a scene and sends the traffic; returns when the kernel has dealt with it.
    verdict
        What becomes of the packet that it is about.
    reason
        Names of the drop reason, of which the running kernel gives one; kernels rename and refine them. Empty where
        the packet is not dropped.
    where
        Functions of which one gives the packet up.
    ns
        In whose namespace, by its name in the lab.
    also
        Reasons of other packets that the fault makes the kernel drop too.
    modules
        What a kernel built of modules has to load first.
    lasts
        Whether the scene has to stand until the capture is over, as for a packet that is to be unfinished.
    whole_machine
        Whether it changes settings that all namespaces share: for a machine of its own only.
    """

    name: str
    what: str
    provoke: Provoke
    verdict: str = "dropped"
    reason: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    ns: str = "server"
    also: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    lasts: bool = False
    whole_machine: bool = False


CASES: dict[str, Case] = {}
"""Every case, by its name."""


def case(
    what: str,
    *,
    verdict: str = "dropped",
    reason: str = "",
    where: str = "",
    ns: str = "server",
    also: str = "",
    modules: str = "",
    lasts: bool = False,
    whole_machine: bool = False,
) -> Callable[[Provoke], Provoke]:
    """Make a case of a function; its name is the function's. Several names in one text are parted by blanks."""

    def register(provoke: Provoke) -> Provoke:
        name = provoke.__name__
        reasons, functions, others, needed = (tuple(text.split()) for text in (reason, where, also, modules))
        CASES[name] = Case(name, what, provoke, verdict, reasons, functions, ns, others, needed, lasts, whole_machine)
        return provoke

    return register
