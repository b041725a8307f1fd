"""A recording of only some of its packets.

A packet is taken whole or not at all, with everything that holds for it. When events were lost is kept from the whole
recording, since in what is left every jump of a CPU's count may be a hop of a packet that was not taken.
"""

from __future__ import annotations

import re
import tokenize
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis.events import Events
from bpfpath_nb.errors import OptionError
from bpfpath_nb.filter import Filter
from bpfpath_nb.filter.stored import matches
from bpfpath_nb.printable import printable

_UNANSWERED: Final = (
    SyntaxError, ValueError, TypeError, AttributeError, ArithmeticError, IndexError, NotImplementedError,
    RecursionError, re.error, tokenize.TokenError,
)  # fmt: skip
"""What pandas raises for expressions that it does not take, or whose numbers are none of the column's."""


def where(events: Events, expression: str | Filter) -> Events:
    """The packets of which some headers snapshot matches a filter."""
    return select(events, matching(events, expression))


def matching(events: Events, expression: str | Filter) -> npt.NDArray[np.bool_]:
    """Of each packet whether some headers snapshot of it matches a filter."""
    packet_filter = expression if isinstance(expression, Filter) else Filter(expression)
    if packet_filter.matches_everything:
        return np.ones(len(events.packets), bool)
    matched = events.facts["packet"][matches(packet_filter, events.facts)]
    return np.isin(events.packets, matched)


def query(events: Events, packets: pd.DataFrame, expression: str, level: int) -> Events:
    """The packets for which an expression over the frame of packets holds; `level` calls above is who asks."""
    return select(events, holding(packets, expression, level + 1))


def holding(frame: pd.DataFrame, expression: str, level: int = 0) -> npt.NDArray[np.bool_]:
    """Of each row whether an expression over the columns holds; `level` calls above is who asks."""
    asked = printable(repr(expression))
    try:
        chosen: Any = frame.eval(expression, level=level + 1)
        if getattr(chosen, "shape", None) != (len(frame),) or chosen.dtype.kind != "b":
            raise TypeError("it is not true or false for each row")
    except (pd.errors.UndefinedVariableError, KeyError) as error:
        raise OptionError(
            f"The query {asked} asks for what is no column: {printable(str(error))}. There are: "
            f"{', '.join([*(str(name) for name in frame.index.names if name), *frame.columns])}."
        ) from None
    except _UNANSWERED as error:
        raise OptionError(
            f"The query {asked} cannot be answered: {printable(str(error))}. It is an expression as `packets.query` "
            "takes it, for instance \"verdict == 'dropped' and netns == 'web'\"; strings stand in quotes, and so do "
            "durations, \"total > '5ms'\", and moments, with their zone: \"first > '2026-01-31 12:00:00Z'\"."
        ) from None
    return pd.Series(chosen).fillna(False).to_numpy(bool)


def select(events: Events, packets: npt.NDArray[np.bool_]) -> Events:
    """Only some packets: of each whether it stays."""
    return events if packets.all() else events.select(packets)
