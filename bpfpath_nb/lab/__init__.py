"""Network namespaces with traffic and faults to practise on.

A file for each idea: `plan` says who gets which address, `keeper` is the process that builds and holds, `ledger`
makes sure that nothing stays behind, `faults` drops packets, `network` is what a user sees, `demo` is `make demo`.
"""

from __future__ import annotations

from bpfpath_nb.lab.faults import Drop
from bpfpath_nb.lab.network import Lab

__all__ = ["Drop", "Lab"]
