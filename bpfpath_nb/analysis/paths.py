"""The frame of paths: which ways packets took through the kernel, and how often.

A path is the ordered list of a packet's functions. Its id is the head of the BLAKE2b hash of their names, after
compiler suffixes are taken off and names that differ from kernel to kernel are brought to one (`aliases` of the
catalogue), and without what our own tracing adds (`variants`). So it is the same in every capture and on
every kernel that runs through the same functions, and two recordings' paths can be joined by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.hop_columns import HopColumns
from bpfpath_nb.analysis.hops import timedeltas
from bpfpath_nb.analysis.quantiles import quantiles
from bpfpath_nb.analysis.sequences import distinct
from bpfpath_nb.analysis.variants import own_classifier
from bpfpath_nb.kernel.catalogue import load
from bpfpath_nb.schema import PATHS, VERDICTS


@dataclass(frozen=True)
class Paths:
    """The paths of some packets.

    Attributes
    ----------
    which : array
        For each packet the position of its path in what follows.
    ids, functions : lists of str
        For each path its id and its functions as text.
    """

    which: npt.NDArray[np.intp]
    ids: list[str]
    functions: list[str]

    def named(self) -> names.Named:
        """Of each packet its path's id."""
        return names.distinct_names(self.which, self.ids)


def find_paths(func: names.Named, first: npt.NDArray[np.intp], position: npt.NDArray[Any]) -> Paths:
    """Tell packets' paths apart.

    Parameters
    ----------
    func : Named
        Of each hop its function.
    first : array
        Row of each packet's first hop.
    position : array
        Of each hop its number in its packet.
    """
    catalogue = load()
    known = [catalogue.find(name) for name in func.names]
    same = names.distinct_names(
        func.codes, [name if entry is None else entry.name for name, entry in zip(func.names, known, strict=True)]
    )
    codes, place, begin = same.codes, position, first
    left_out = own_classifier(func, position)
    if left_out is not None:
        codes, place, begin = _without(left_out, codes, first)
    examples, which = distinct(codes, place, begin)
    return Paths(
        which,
        [
            hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
            for text in _texts(same.names, codes, begin, examples, "\n")
        ],
        _texts(func.names, func.codes, first, examples, " > "),
    )


def _without(
    left_out: npt.NDArray[np.bool_], codes: npt.NDArray[Any], first: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The hops but for some, their numbers in their packets, and the row of each packet's first; none loses all."""
    kept = np.cumsum(~left_out)
    begin: npt.NDArray[np.intp] = kept[first] - ~left_out[first]
    codes = codes[~left_out]
    return codes, np.arange(len(codes)) - np.repeat(begin, np.diff(np.append(begin, len(codes)))), begin


def _texts(
    known: Sequence[str], codes: npt.NDArray[Any], first: npt.NDArray[np.intp], packets: npt.NDArray[np.intp], by: str
) -> list[str]:
    ends = np.append(first[1:], len(codes))
    return [by.join([known[code] for code in codes[first[at] : ends[at]].tolist()]) for at in packets]


def paths_frame(hops: HopColumns, paths: Paths, verdict: npt.NDArray[np.int8]) -> pd.DataFrame:
    """All paths, the most frequent first.

    Parameters
    ----------
    hops : HopColumns
    paths : Paths
        Of the packets of `hops`.
    verdict : array of int8
        Of each packet the position of its verdict in schema.VERDICTS; -1 where it is not known.

    Returns
    -------
    DataFrame
        Index path; columns as schema.PATHS.
    """
    return paths_table(paths, hops.time[hops.last] - hops.time[hops.first], hops.counts, verdict)


def paths_table(
    paths: Paths, times: npt.NDArray[np.int64], hops: npt.NDArray[np.intp], verdict: npt.NDArray[np.int8]
) -> pd.DataFrame:
    """As `paths_frame`, from each packet's path, time from first to last hop, number of hops, and verdict."""
    count, which = len(paths.ids), paths.which
    packets = np.bincount(which, minlength=count)
    example = np.zeros(count, np.intp)
    example[which[::-1]] = np.arange(len(which))[::-1]
    known = verdict >= 0
    cases = np.bincount(which[known] * len(VERDICTS) + verdict[known], minlength=count * len(VERDICTS))
    cases = cases.reshape(count, len(VERDICTS))
    usual = np.where(cases.any(axis=1), cases.argmax(axis=1), -1) if count else np.empty(0, np.int8)
    total = quantiles(which, count, times)
    order = np.argsort(-packets, kind="stable")
    text = names.distinct_names(order, paths.functions)
    columns: dict[str, Any] = {
        "packets": packets[order].astype(np.int64),
        "share": packets[order] / max(len(which), 1),
        "hops": hops[example[order]].astype(np.uint32),
        "functions": text.categorical(),
        "verdict": names.categorical(usual[order], VERDICTS),
        "median": timedeltas(total["p50"][order]),
        "p99": timedeltas(total["p99"][order]),
    }
    index = pd.Index([paths.ids[at] for at in order.tolist()], dtype="str", name="path")
    return pd.DataFrame({column.name: columns[column.name] for column in PATHS}, index=index)
