"""`df.bpfpath`: a recording's answers for any frame of hops.

A user filters `Recording.df` with all that pandas has, or puts the frames of several recordings together, and wants
the same questions answered of what is left. The computations are those of the recording itself; the rows that follow
each other in the frame are the hops that follow each other. So `df[df.func.isin(["ip_rcv", "tcp_v4_rcv"])]` has the
transition from the one to the other, with the time from the one to the other, whatever was in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bpfpath_nb.analysis.functions import functions_frame
from bpfpath_nb.analysis.hop_columns import FrameColumns
from bpfpath_nb.analysis.hops import timedeltas
from bpfpath_nb.analysis.latency import grouping, latency_frame
from bpfpath_nb.analysis.packets import itineraries
from bpfpath_nb.analysis.paths import Paths, find_paths, paths_frame
from bpfpath_nb.analysis.transitions import transitions_frame
from bpfpath_nb.errors import OptionError


@pd.api.extensions.register_dataframe_accessor("bpfpath")
class HopsAccessor:
    """What a recording answers, for a frame of hops.

    Every property and method raises OptionError, which names them, where the frame lacks columns that it needs.
    """

    def __init__(self, df: pd.DataFrame) -> None:
        self._df = df

    @property
    def packets(self) -> pd.DataFrame:
        """One row per packet, with those columns of `Recording.packets` that follow from its hops in this frame.

        Index: that of the frame without `hop`. Columns: first, last, total, hops, path, flow, netns, namespaces.
        """
        hops = FrameColumns(self._df, ("time", "func", "flow", "netns"))
        first, last, netns = hops.first, hops.last, hops.named("netns")
        time = hops.df["time"]
        columns: dict[str, Any] = {
            "first": time.array[first],
            "last": time.array[last],
            "total": timedeltas(hops.time[last] - hops.time[first]),
            "hops": hops.counts.astype(np.uint32),
            "path": _paths(hops).named().categorical(),
            "flow": hops.named("flow").take(first).categorical(),
            "netns": netns.take(first).categorical(),
            "namespaces": itineraries(hops.packet_of, len(first), netns).categorical(),
        }
        return pd.DataFrame(columns, index=hops.packets_index)

    @property
    def paths(self) -> pd.DataFrame:
        """As `Recording.paths`. The verdict is missing: hops alone do not tell it."""
        hops = FrameColumns(self._df, ("func", "time"))
        return paths_frame(hops, _paths(hops), np.full(len(hops.first), -1, np.int8))

    @property
    def functions(self) -> pd.DataFrame:
        """As `Recording.functions`, of the gaps and durations that the frame has."""
        return functions_frame(FrameColumns(self._df, ("func", "layer", "gap", "duration")))

    @property
    def transitions(self) -> pd.DataFrame:
        """As `Recording.transitions`, from each hop to the packet's next one in this frame.

        A frame does not tell for whom a packet was freed; that it was read from its socket is told by the functions
        and by the change of process only. Nor has it sequence numbers: that TCP kept a segment out of order is told
        where `tcp_data_queue_ofo` is a function that was traced, and else its wait counts as one in its socket.
        """
        return transitions_frame(FrameColumns(self._df, ("func", "time", "skb", "pid", "cpu")))

    def latency(self, by: str | Sequence[str] = ("netns", "func")) -> pd.DataFrame:
        """As `Recording.latency`, by columns or index levels of the frame."""
        by = grouping(by)
        levels = [name for name in by if name in self._df.index.names and name not in self._df.columns]
        df = self._df.reset_index(levels) if levels else self._df
        missing = [name for name in ("gap", "duration") if name not in df.columns]
        if missing:
            raise OptionError(f"This frame lacks {', '.join(repr(name) for name in missing)}, which this needs.")
        return latency_frame(df, by)


def _paths(hops: FrameColumns) -> Paths:
    return find_paths(hops.func, hops.first, hops.position)
