"""A packet's way through the Linux kernel, as a DataFrame in a notebook.

    %load_ext bpfpath_nb
    cap = Capture("udp port 53")     # armed when this returns; capturing in the background
    ...                              # the traffic happens
    cap.df                           # one row per function a packet passed, with how long it took

The public names are loaded on first use: `import bpfpath_nb` is done in an instant and needs neither pandas nor bcc,
also where only the tracer or the command line is wanted.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bpfpath_nb.version import __version__

if TYPE_CHECKING:
    from bpfpath_nb.capture import Capture
    from bpfpath_nb.comparison import Comparison, compare
    from bpfpath_nb.doctor import doctor
    from bpfpath_nb.filter import Filter
    from bpfpath_nb.recording import Recording
    from bpfpath_nb.samples import sample
    from bpfpath_nb.widgets.comparer import compare_widget
    from bpfpath_nb.widgets.live import live

__all__ = [
    "Capture",
    "Comparison",
    "Filter",
    "Recording",
    "__version__",
    "compare",
    "compare_widget",
    "doctor",
    "live",
    "sample",
]

_HOME = {
    "Capture": "bpfpath_nb.capture",
    "Comparison": "bpfpath_nb.comparison",
    "Filter": "bpfpath_nb.filter",
    "Recording": "bpfpath_nb.recording",
    "compare": "bpfpath_nb.comparison",
    "compare_widget": "bpfpath_nb.widgets",
    "doctor": "bpfpath_nb.doctor",
    "live": "bpfpath_nb.widgets",
    "sample": "bpfpath_nb.samples",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`doctor` is a module and the function in it; the name means the function, however the module was loaded."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext bpfpath_nb`: make the public names names of the notebook."""
    from bpfpath_nb import magic

    magic.load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """`%unload_ext bpfpath_nb`: take them back."""
    from bpfpath_nb import magic

    magic.unload(ipython)
