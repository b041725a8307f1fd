"""What a capture missed, and which packets that may have touched.

Whatever packet was alive when events were lost (`jumps`) may lack a hop. A packet is alive from its first hop until its
last, or until the end of the capture where its end was not seen; one whose entry was not seen (its first hop is not
flagged `entry`) has lost its beginning in any case. So may one that was seen by a program while the kernel skipped
others on that CPU (a hop that is flagged `skipped`); what was skipped between two such programs is not known.

What was lost after a CPU's last event leaves no jump. The counters `events_lost` and `events_over` tell how much
there was in all, and where they exceed the jumps, every packet that was not seen to end is taken as touched.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis.events import Events
from bpfpath_nb.printable import printable
from bpfpath_nb.schema import EVENT_FLAGS, VERDICTS

LOSS_COUNTERS: Final = ("events_lost", "events_over", "facts_lost", "packets_untracked", "probe_misses", "returns_lost")
"""The counters of schema.COUNTERS that must be 0 for a capture to be whole."""


def complete(events: Events) -> npt.NDArray[np.bool_]:
    """Of each packet whether no hop of it is known to be in danger: nothing was lost while it was alive."""
    flags = events.hops["flags"]
    if not len(events):
        return np.empty(0, bool)
    entered = np.asarray(flags[events.first] & EVENT_FLAGS["entry"] != 0)
    entered &= ~np.logical_or.reduceat(flags & EVENT_FLAGS["skipped"] != 0, events.first)
    ended = has_ended(events)
    lost = events.when_lost
    if events.counters.get("events_lost", 0) + events.counters.get("events_over", 0) > lost.events:
        entered &= ended
    if not len(lost.begin):
        return entered
    alive_from = events.hops["time"][events.first].astype(np.int64)
    alive_to = np.where(ended, events.hops["time"][events.last].astype(np.int64), np.iinfo(np.int64).max)
    return np.asarray(entered & (lost.between(alive_from, alive_to) == 0))


def has_ended(events: Events) -> npt.NDArray[np.bool_]:
    """Of each packet whether its end was seen: its data was freed, or each of its sk_buffs.

    The second alone would do, if every end were reported; the first alone would do, if the kernel's count of clones
    could be read at every place that frees.
    """
    return np.asarray(events.copies.living == 0)


def quality(events: Events, packets: pd.DataFrame) -> pd.Series[Any]:
    """What is known about how good the capture is.

    Returns
    -------
    Series
        By the names of schema.QUALITY. Never hidden: reprs and files carry the losses too.
        `cost_packet` is `cost_refused` once, for the filter, and the mean number of hops at the mean cost of those that
        were timed while they were recorded; in recordings without such, at `cost_hop`.
    """
    cost = events.start.cost
    # A function of a module that was loaded later is refused first and met after all.
    counts = np.bincount(events.hops["func"], minlength=len(events.start.functions))
    met = {function.name for function, count in zip(events.start.functions, counts.tolist(), strict=True) if count}
    refused = [entry for entry in events.start.refused if entry.instead or entry.name not in met]
    untraced = {entry.name for entry in refused if not entry.instead}
    timed = events.counters.get("hops_timed", 0)
    cost_hop = events.counters.get("hops_time", 0) / timed if timed else cost.get("hop", np.nan)
    values: dict[str, Any] = _counted(events)
    values |= {
        "packets_sampled_out": events.counters.get("packets_sampled_out", 0),
        "ends_unseen": events.counters.get("ends_unseen", 0),
        "gaps": len(events.when_lost.begin),
        "headers_missing": int((events.fact_of[events.first] < 0).sum()),
        "incomplete": int((~packets["complete"]).sum()),
        "unfinished": int((packets["verdict"] == VERDICTS[-1]).sum()),
        "packets": len(packets),
        "hops": len(events),
        "probes": sum(function.name not in untraced for function in events.start.functions),
        "refused": len(refused),
        "not_traced": ", ".join(
            f"{entry.name} ({entry.instead} instead)" if entry.instead else entry.name for entry in refused
        ),
        "cost_hop": cost.get("hop", np.nan),
        "cost_refused": cost.get("refused", np.nan),
        "cost_packet": cost.get("refused", np.nan) + cost_hop * len(events) / max(1, len(packets)),
        "ladder": events.start.ladder,
        "end": printable(str(events.end.get("reason", ""))) if events.end else "",
    }
    return pd.Series(values, name="quality", dtype=object)


def losses(events: Events) -> dict[str, int]:
    """The counters that say that something was lost, with how much, in the order of schema.COUNTERS."""
    return {name: count for name, count in _counted(events).items() if count}


def _counted(events: Events) -> dict[str, int]:
    """The counters of losses. Kernels before 6.7 do not count all hits that they skip; there the hops that were seen
    while one would have been are at least some."""
    counted = {name: events.counters.get(name, 0) for name in LOSS_COUNTERS}
    if not _counts_skipped(events.start.release):
        seen = int(np.count_nonzero(events.hops["flags"] & EVENT_FLAGS["skipped"]))
        counted["probe_misses"] = max(counted["probe_misses"], seen)
    return counted


def _counts_skipped(release: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is None or (int(numbers[1]), int(numbers[2])) >= (6, 7)
