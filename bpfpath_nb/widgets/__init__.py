"""Live panels for a notebook: `explore`, `compare_widget`, `live`.

Each is a thin skin on public functions: whatever one shows can be had without it. They are made of ipywidgets' own
controls, which every JupyterLab carries, so nothing is fetched from anywhere. What a panel shows is HTML and PNG that
was made in Python; `snapshot()` gives just that, for readers without a kernel.
"""

from __future__ import annotations

from bpfpath_nb.widgets.comparer import compare_widget
from bpfpath_nb.widgets.explorer import explore
from bpfpath_nb.widgets.live import live

__all__ = ["compare_widget", "explore", "live"]
