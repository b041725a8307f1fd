"""A saved recording in parts, for Dask: larger than memory, or on a cluster.

The row groups of a recording's file have whole packets, so each is a recording by itself, and whatever is said of one
packet or one hop can be said by each alone: `df` and `packets` are Dask DataFrames with a partition for each row group.
What is said of all packets together needs a little of each part: of paths each packet's path, time and verdict; of
functions counts, and the few values among which the quantiles lie (`analysis.parts`). So the results are those of the
recording in memory, to the last nanosecond.

The workers read the file themselves, so they need it under the same path.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names, parts
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.functions import functions_table
from bpfpath_nb.analysis.hop_columns import EventColumns
from bpfpath_nb.analysis.packets import verdicts
from bpfpath_nb.analysis.paths import Paths, find_paths, paths_table
from bpfpath_nb.errors import RequirementError
from bpfpath_nb.io.parquet import open_part, row_groups
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT, FACTS_DTYPE, SCHEMA_VERSION
from bpfpath_nb.start import StartRecord

_TIMES = ("gap", "duration")


@dataclasses.dataclass(frozen=True)
class PacketsPart:
    """Of each packet of a part what the frame of paths needs."""

    paths: Paths
    total: npt.NDArray[np.int64]
    hops: npt.NDArray[np.intp]
    verdict: npt.NDArray[np.int8]


@dataclasses.dataclass(frozen=True)
class FunctionsPart:
    """Of each function of a part what the frame of functions needs, before any quantile is known."""

    names: list[str]
    layers: npt.NDArray[np.int8]
    hits: npt.NDArray[np.int64]
    packets: npt.NDArray[np.int64]
    counts: dict[str, parts.Counts]


class RecordingInParts:
    """A saved recording as Dask DataFrames; `Recording.to_dask` makes it.

    Each is computed as the recording's frame of that name, by `.compute()` or on a cluster.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._dask: Any = import_module("dask")
            self._frames: Any = import_module("dask.dataframe")
        except ImportError as error:
            raise RequirementError(
                f"A recording in parts needs Dask, which is not there ({error}). Install it with "
                "`pip install 'bpfpath_nb[dask]'`."
            ) from None
        self._path = path.absolute()
        self._packets = row_groups(self._path)

    def __repr__(self) -> str:
        return f"<{self._path.name} in {len(self._packets)} parts, packets {self._packets}>"

    @cached_property
    def df(self) -> Any:
        """As `Recording.df`, a partition for each row group. The index is `packet`; `hop` is a column."""
        return self._partitions("df")

    @cached_property
    def packets(self) -> Any:
        """As `Recording.packets`, a partition for each row group."""
        return self._partitions("packets")

    @cached_property
    def paths(self) -> Any:
        """As `Recording.paths`, in one partition."""
        looked = [self._dask.delayed(_packets_part)(self._path, at) for at in range(len(self._packets))]
        return self._whole(self._dask.delayed(_paths)(looked), "paths")

    @cached_property
    def functions(self) -> Any:
        """As `Recording.functions`, in one partition."""
        delayed = self._dask.delayed
        looked = [delayed(_functions_part)(self._path, at) for at in range(len(self._packets))]
        wanted = delayed(_wanted)(looked)
        picked = [delayed(_pick)(self._path, at, wanted) for at in range(len(self._packets))]
        return self._whole(delayed(_functions)(looked, picked), "functions")

    def _partitions(self, name: str) -> Any:
        if not self._packets:
            return self._frames.from_pandas(_plain(getattr(Recording(_no_events()), name)), npartitions=1)
        meta = _empty(name)
        frames = [self._dask.delayed(_frame)(self._path, at, name) for at in range(len(self._packets))]
        divisions = (*(first for first, _ in self._packets), self._packets[-1][1])
        return self._frames.from_delayed(frames, meta=meta, divisions=divisions, verify_meta=False)

    def _whole(self, frame: Any, name: str) -> Any:
        return self._frames.from_delayed([frame], meta=_empty(name), verify_meta=False)


def _empty(name: str) -> pd.DataFrame:
    """A frame of no hops; which names its categories have is known only when the parts are."""
    frame = _plain(getattr(Recording(_no_events()), name))
    categories = frame.select_dtypes("category").columns
    unknown = [column for column in categories if not len(frame[column].cat.categories)]
    cleared: pd.DataFrame = import_module("dask.dataframe.utils").clear_known_categories(
        frame, cols=unknown, index=False
    )
    return cleared


def _no_events() -> Events:
    start = StartRecord.from_dict({"version": SCHEMA_VERSION, "clock": {"monotonic": 0, "realtime": 0}})
    columns = {column.name: np.empty(0, column.dtype) for column in EVENT}
    return Events.build(start, columns, np.empty(0, FACTS_DTYPE))


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Dask knows no index of two levels: of hops, `packet` stays the index and `hop` becomes a column."""
    return frame.reset_index("hop") if "hop" in frame.index.names else frame


def _frame(path: Path, at: int, name: str) -> pd.DataFrame:
    return _plain(getattr(Recording(open_part(path, at)), name))


def _packets_part(path: Path, at: int) -> PacketsPart:
    events = open_part(path, at)
    paths = find_paths(names.functions(events), events.first, events.hop)
    return PacketsPart(paths, events.utc[events.last] - events.utc[events.first], events.counts, verdicts(events)[0])


def _paths(looked: list[PacketsPart]) -> pd.DataFrame:
    functions: dict[str, str] = {}
    for part in looked:
        functions = dict(zip(part.paths.ids, part.paths.functions, strict=True)) | functions
    # In the order of their first packets, as in a recording.
    ids = list(dict.fromkeys(path for part in looked for path in part.paths.ids))
    number = {path: at for at, path in enumerate(ids)}
    which = [np.array([number[path] for path in part.paths.ids], np.intp)[part.paths.which] for part in looked]
    paths = Paths(_joined(which, np.intp), ids, [functions[path] for path in ids])
    total, hops, verdict = (
        _joined([getattr(part, name) for part in looked], dtype)
        for name, dtype in (("total", np.int64), ("hops", np.intp), ("verdict", np.int8))
    )
    return paths_table(paths, total, hops, verdict)


def _joined(arrays: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _functions_part(path: Path, at: int) -> FunctionsPart:
    hops = EventColumns(open_part(path, at))
    func, count = hops.func.codes, len(hops.func.names)
    return FunctionsPart(
        hops.func.names,
        hops.layer_of_function,
        np.bincount(func, minlength=count),
        hops.packets_with(func, count),
        {of: parts.count(func, getattr(hops, of)) for of in _TIMES},
    )


def _wanted(looked: list[FunctionsPart]) -> dict[str, npt.NDArray[np.int64]]:
    return {of: parts.wanted(parts.merge(part.counts[of] for part in looked)) for of in _TIMES}


def _pick(path: Path, at: int, wanted: dict[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
    hops = EventColumns(open_part(path, at))
    return {of: parts.pick(hops.func.codes, getattr(hops, of), wanted[of]) for of in _TIMES}


def _functions(looked: list[FunctionsPart], picked: list[dict[str, Any]]) -> pd.DataFrame:
    if not looked:
        return Recording(_no_events()).functions
    first = looked[0]
    quantiles = {
        of: parts.quantiles(
            parts.merge(part.counts[of] for part in looked), [values[of] for values in picked], len(first.names)
        )
        for of in _TIMES
    }
    layers = np.max([part.layers for part in looked], axis=0)
    hits, packets = (np.sum([getattr(part, name) for part in looked], axis=0) for name in ("hits", "packets"))
    return functions_table(first.names, layers, hits, packets, quantiles)
