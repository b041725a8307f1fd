"""What the running kernel offers: structures, functions and tracepoints that meet a packet, symbols, drop reasons.

The kernel tells, never a table of ours: all of it is read from BTF, kallsyms and tracefs. `Kernel.running()` is the way
in; what it finds can be recorded (`facts`) and asked again where that kernel is not.
"""

from bpfpath_nb.kernel.catalogue import LAYERS, Catalogue
from bpfpath_nb.kernel.running import Kernel, loaded_modules
from bpfpath_nb.kernel.sets import SETS, Selection, select, select_tracepoints
from bpfpath_nb.kernel.structures import Member, MissingTypeError, Types
from bpfpath_nb.kernel.symbols import Symbol, Symbols, fold

__all__ = [
    "LAYERS",
    "SETS",
    "Catalogue",
    "Kernel",
    "Member",
    "MissingTypeError",
    "Selection",
    "Symbol",
    "Symbols",
    "Types",
    "fold",
    "loaded_modules",
    "select",
    "select_tracepoints",
]
