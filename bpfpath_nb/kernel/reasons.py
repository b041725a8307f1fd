"""Why the kernel dropped a packet, in the running kernel's own words.

Since 5.17 whoever frees a packet says why, by a number. What a number means changes from release to release (values are
inserted in the middle), so names come from the running kernel: from BTF's ``enum skb_drop_reason``, else from the table
that tracefs prints for the tracepoint ``skb:kfree_skb``. Kernels before 5.17 have neither, and no reasons.

Since 6.4 the upper 16 bits are a subsystem (``enum skb_drop_reason_subsys``): 0 is the core's enumeration, the others
number their reasons on their own, each in an enumeration of its module (include/net/dropreason.h). A subsystem's values
already carry the upper bits where they are declared from ``SKB_DROP_REASON_SUBSYS_x << SKB_DROP_REASON_SUBSYS_SHIFT``,
and then need only be read; where they count from 0 the bits are added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from bpfpath_nb.kernel.structures import Types

SUBSYSTEM_SHIFT = 16

_PREFIX = "SKB_DROP_REASON_"
# The enumeration of each subsystem, by the subsystem's name in `enum skb_drop_reason_subsys`.
SUBSYSTEM_ENUMS = {
    "MAC80211_UNUSABLE": ("mac80211_drop_reason",),
    "MAC80211_MONITOR": ("mac80211_drop_reason",),  # until 6.6 one enumeration served both
    "OPENVSWITCH": ("ovs_drop_reason",),
    "QDISC": ("qdisc_drop_reason",),
}
ENUMS = ("skb_drop_reason", "skb_drop_reason_subsys", *sorted({e for enums in SUBSYSTEM_ENUMS.values() for e in enums}))
_OWN_PREFIX = re.compile(r"^(?:SKB_DROP_REASON_|OVS_DROP_|RX_DROP_|QDISC_DROP_)")
_NOT_REASONS = {"NOT_DROPPED_YET", "MAX", "SUBSYS_MASK", "CONSUMED"}

_SYMBOLIC = re.compile(r'\{\s*(0x[0-9a-fA-F]+|\d+)\s*,\s*"([A-Za-z0-9_]{1,64})"\s*\}')
MAX_FORMAT_CHARS = 1 << 20  # a format file has some kilobytes


def names(types: Types, modules: Iterable[Types] = (), tracefs_format: str | None = None) -> dict[int, str]:
    """Drop reasons of a kernel.

    Parameters
    ----------
    types
        The types of vmlinux.
    modules
        Those of loaded modules, in which subsystems declare their reasons.
    tracefs_format
        Text of ``events/skb/kfree_skb/format``, used where BTF does not have the enumeration.

    Returns
    -------
    dict
        Name by number, ``{3: "NO_SOCKET", ...}``; subsystem reasons are named ``OVS_LAST_ACTION`` and the like.
        Empty on kernels before 5.17.
    """
    core = types.enumeration("skb_drop_reason")
    if core is None:
        return from_format(tracefs_format or "")
    found: dict[int, str] = {}
    for value, name in core.items():
        short = name.removeprefix("SKB_").removeprefix("DROP_REASON_")
        if short not in _NOT_REASONS and not name.startswith("__"):
            found[value] = short
    places = [types, *modules]
    for number, subsystem in subsystems(types).items():
        for enum in SUBSYSTEM_ENUMS.get(subsystem, ()):
            for place in places:
                values = place.enumeration(enum)
                if values is None:
                    continue
                for value, name in values.items():
                    # mac80211 declares through u32 values that BTF keeps as unsigned; a wrapped sign is undone.
                    whole = value & 0xFFFFFFFF if value >> SUBSYSTEM_SHIFT else value | number << SUBSYSTEM_SHIFT
                    if name.startswith("__") or name.endswith("_MAX") or "DROP" not in name:
                        continue  # bounds, and verdicts that are no drops (mac80211's RX_CONTINUE)
                    if whole >> SUBSYSTEM_SHIFT == number and whole & 0xFFFF:
                        found.setdefault(whole, _subsystem_name(subsystem, name))
                break
    return found


def subsystems(types: Types) -> dict[int, str]:
    """Name of each drop-reason subsystem but the core's, by its number; empty before 6.4."""
    values = types.enumeration("skb_drop_reason_subsys") or {}
    prefix = f"{_PREFIX}SUBSYS_"
    return {v: n.removeprefix(prefix) for v, n in values.items() if v and not n.endswith("_NUM")}


def _subsystem_name(subsystem: str, name: str) -> str:
    short = {"OPENVSWITCH": "OVS"}.get(subsystem, subsystem.split("_", maxsplit=1)[0])
    return f"{short}_{_OWN_PREFIX.sub('', name).removeprefix(short + '_')}"


def from_format(text: str) -> dict[int, str]:
    """Drop reasons from the ``print fmt`` of a tracefs format file; empty where it has no table.

    Examples
    --------
    >>> from_format('print fmt: "%s", __print_symbolic(REC->reason, { 2, "NOT_SPECIFIED" }, { 3, "NO_SOCKET" })')
    {2: 'NOT_SPECIFIED', 3: 'NO_SOCKET'}
    """
    text = text[:MAX_FORMAT_CHARS]
    start = text.find("__print_symbolic(REC->reason")
    if start < 0:
        return {}
    found: dict[int, str] = {}
    for value, name in _SYMBOLIC.findall(text[start:]):
        short = name.removeprefix(_PREFIX)
        if short not in _NOT_REASONS:
            found.setdefault(int(value, 0), short)
    return found
