"""The frame of namespaces: what passed through each, how long it was there, and what became of it there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.ends import real_drops
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.hop_columns import HopColumns
from bpfpath_nb.analysis.hops import timedeltas
from bpfpath_nb.analysis.packets import Verdicts
from bpfpath_nb.schema import NAMESPACES, VERDICTS


def namespaces_frame(events: Events, hops: HopColumns, verdicts: Verdicts) -> pd.DataFrame:
    """All namespaces that packets were seen in, that with most packets first; `verdicts` as `packets.verdicts`.

    A gap is spent where the hop before it was. Namespaces that go by one name are one row.

    Returns
    -------
    DataFrame
        Index netns; columns as schema.NAMESPACES.
    """
    netns = names.netns(events)
    code, count = netns.codes, len(netns.names)
    verdict, deciding = verdicts
    delivered = code[deciding[verdict == VERDICTS.index("delivered")]]
    gap = hops.gap.clip(min=0)
    packets = hops.packets_with(code, count)
    order = np.argsort(-packets, kind="stable")
    # A number had other names before or after these hops.
    order = order[packets[order] > 0]
    columns: dict[str, Any] = {
        "packets": packets,
        "hops": _count(code, count),
        "time": timedeltas(_sum(code, gap, count)),
        "waiting": timedeltas(_sum(code, np.where(hops.queue >= 0, gap, 0), count)),
        "drops": _count(code[real_drops(events)], count),
        "delivered": _count(delivered, count),
    }
    columns = {name: values[order] for name, values in columns.items()}
    interfaces = _interfaces(events, netns)
    columns["interfaces"] = names.distinct_names(order, interfaces).categorical()
    index = pd.Index([netns.names[at] for at in order.tolist()], dtype="str", name="netns")
    return pd.DataFrame({column.name: columns[column.name] for column in NAMESPACES}, index=index)


def _count(code: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    return np.bincount(code[code >= 0], minlength=count).astype(np.int64)


def _sum(code: npt.NDArray[Any], values: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Of each namespace the sum, in whole numbers: as floats, sums of ns beyond 104 days would be rounded."""
    low = np.bincount(code + 1, weights=values & 0xFFFFF, minlength=count + 1)
    high = np.bincount(code + 1, weights=values >> 20, minlength=count + 1)
    return ((high.astype(np.int64) << 20) + low.astype(np.int64))[1:]


def _interfaces(events: Events, netns: names.Named) -> list[str | None]:
    """Of each namespace the names of its interfaces that packets were seen at, in order of their names."""
    devices = names.devices(events)
    if not len(netns.names):
        return []
    seen = np.zeros((len(netns.names) + 1, len(devices.names) + 1), bool)
    seen[netns.codes, devices.codes] = True
    return [
        ", ".join(sorted(devices.names[at] for at in np.flatnonzero(row[:-1]).tolist())) or None for row in seen[:-1]
    ]
