"""Real causes, provoked on purpose: each a fault, its traffic, and what the kernel makes of it.

>>> from bpfpath_nb.lab.cases import CASES
>>> CASES["rp_filter"].reason
('IP_RPFILTER',)
"""

from __future__ import annotations

from bpfpath_nb.lab.cases import devices, netfilter, network, transport
from bpfpath_nb.lab.cases.case import CASES, Case
from bpfpath_nb.lab.cases.run import FILTER, provoked

__all__ = ["CASES", "FILTER", "Case", "devices", "netfilter", "network", "provoked", "transport"]
