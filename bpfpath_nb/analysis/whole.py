"""What comparisons take from a whole recording, worked out once.

Another namespace, path or packet is another selection of the same hops; their names, their waits and what became of
the packets stay what they are. They are small beside the hops themselves, and live as long as these.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis import losses, names, packets, waits
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.kernel.catalogue import load

_KEY = "whole"


class Whole:
    """Of each hop or packet of a recording what does not depend on which of them are compared. Made by `whole`."""

    def __init__(self, events: Events) -> None:
        self._events = events

    @cached_property
    def functions(self) -> names.Named:
        """Of each hop its function, as `one_name` has it."""
        called = names.functions(self._events)
        return names.distinct_names(called.codes, [one_name(name) for name in called.names])

    @cached_property
    def netns(self) -> names.Named:
        """Of each hop its namespace."""
        return names.netns(self._events)

    @cached_property
    def devices(self) -> names.Named:
        """Of each hop its interface."""
        return names.devices(self._events)

    @cached_property
    def reasons(self) -> names.Named:
        """Of each hop its drop reason."""
        return names.reasons(self._events)

    @cached_property
    def queues(self) -> npt.NDArray[np.int8]:
        """As `hop_waits`."""
        return waits.hop_waits(self._events)

    @cached_property
    def verdicts(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.intp]]:
        """Of each packet its verdict and the hop that decided it."""
        return packets.verdicts(self._events)

    @cached_property
    def complete(self) -> npt.NDArray[np.bool_]:
        """Of each packet whether no hop of it can be missing."""
        return losses.complete(self._events)


def whole(events: Events) -> Whole:
    """The one of these events."""
    # As a cached property would keep it; here, because these modules need that of events.
    kept = vars(events)
    if _KEY not in kept:
        kept[_KEY] = Whole(events)
    found: Whole = kept[_KEY]
    return found


def one_name(function: str) -> str:
    """What a function is called here, whatever the kernel calls it (`aliases` of the catalogue)."""
    entry = load().find(function)
    return function if entry is None else entry.name
