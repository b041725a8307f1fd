"""Pictures of a recording: plain functions that take a recording and return matplotlib's Axes.

`recording.plot.timeline(3)` is `bpfpath_nb.plot.timeline(recording, 3)`. Every function takes `ax=` to draw on Axes of
one's own and `theme="light"` or `"dark"`, and every picture says under it what the capture lost.
"""

from __future__ import annotations

from bpfpath_nb.plot.drops import drops
from bpfpath_nb.plot.heatmap import heatmap
from bpfpath_nb.plot.latency import latency
from bpfpath_nb.plot.namespaces import namespaces
from bpfpath_nb.plot.paths import paths
from bpfpath_nb.plot.timeline import timeline

__all__ = ["drops", "heatmap", "latency", "namespaces", "paths", "timeline"]
