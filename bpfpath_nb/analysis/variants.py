"""What only our own tracing adds to a packet's way on some kernels, and a path's id leaves out.

Where our filter at traffic control is no TCX link but a filter of `clsact` (kernels before 6.6), the kernel comes to it
through `tcf_classify` and `cls_bpf_classify`, which nothing would have passed if nobody had traced. So the same way had
one id on 6.1 and another on 6.12.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis import names

Bools = npt.NDArray[np.bool_]

_OURS = ("tc_ingress", "tc_egress")
_CLASSIFIES, _RUNS_BPF = "tcf_classify", "cls_bpf_classify"


def own_classifier(func: names.Named, position: npt.NDArray[Any]) -> Bools | None:
    """Of each hop whether it only led to our own filter at traffic control; None if none can have.

    Parameters
    ----------
    func : Named
        Of each hop its function.
    position : array
        Of each hop its number in its packet.
    """
    if _RUNS_BPF not in func.names or not len(func.codes):
        return None
    ours = np.isin(func.codes, [func.names.index(name) for name in _OURS if name in func.names])
    # Somebody else's filter before ours was run by another call of `cls_bpf_classify`, which stays.
    found: Bools = _before(ours, position) & (func.codes == func.names.index(_RUNS_BPF))
    if _CLASSIFIES in func.names:
        found |= _before(found, position) & (func.codes == func.names.index(_CLASSIFIES))
    return found


def _before(hops: Bools, position: npt.NDArray[Any]) -> Bools:
    """Of each hop whether the next of its packet is one of these."""
    found = np.zeros(len(hops), bool)
    found[:-1] = hops[1:] & (position[1:] > 0)
    return found
