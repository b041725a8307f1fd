"""Network namespaces with traffic and faults to practise on, and other kernels to do it on.

A file for each idea: `plan` says who gets which address, `keeper` is the process that builds and holds, `ledger`
makes sure that nothing stays behind, `faults` drops packets, `network` is what a user sees, `demo` is `make demo`,
`samples` makes the recordings that the package carries. For `bpfpath vm`: `kernels` fetches and keeps stock kernels,
`vm` boots one over this machine's files and runs a command in it, `conversation` passes its streams and signals on,
`pack` makes Python start quickly there, `guest.sh` is the inside.
"""

from __future__ import annotations

from bpfpath_nb.lab.faults import Drop
from bpfpath_nb.lab.network import Lab

__all__ = ["Drop", "Lab"]
