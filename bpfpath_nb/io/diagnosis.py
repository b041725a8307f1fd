"""A diagnosis as plain text, for a terminal or a ticket::

1. FAULT  a firewall rule dropped a packet that was to be forwarded
   2 packets (14 %), 11:56:29.101 to 11:56:32.104 UTC, in nft_do_chain,
   NETFILTER_DROP, netns router, dev eth0
   udp 10.0.1.1:40312 > 10.0.2.2:53, packet 25
   A rule or chain policy of nftables or iptables ...
   $ ip netns exec router nft list ruleset
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pandas as pd

from bpfpath_nb.io.text import WIDTH, loss_lines

if TYPE_CHECKING:
    from bpfpath_nb.diagnosis import Diagnosis

_MOST = 50


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """All findings, at most fifty, in words."""
    parts = ["\n".join(textwrap.wrap(headline(diagnosis), WIDTH))]
    findings = diagnosis.findings.head(_MOST)
    parts += ["\n".join(_finding(number, row)) for number, row in enumerate(findings.itertuples(index=False), 1)]
    if len(diagnosis) > _MOST:
        parts.append(f"... and {len(diagnosis) - _MOST} more in `findings`")
    return "\n\n".join(parts)


def headline(diagnosis: Diagnosis) -> str:
    """What was looked at, and how much was found."""
    packets = len(diagnosis.recording.packets)
    if not packets:
        return (
            "There are no packets, so there is nothing to diagnose: the selection takes none, or none was captured. "
            "Did traffic flow that the filter matches?"
        )
    if not len(diagnosis):
        return (
            f"Nothing is wrong in {_many(packets, 'packet')}: none was dropped, none went round or twice, none waited "
            "for long or without end, and no event of the capture was lost."
        )
    count = diagnosis.findings["severity"].value_counts(sort=False)
    told = ", ".join(f"{number} {name}{'s' * (number > 1)}" for name, number in count.items() if number)
    lost = "".join(f" The capture is not whole: {line}." for line in loss_lines(diagnosis.recording))
    return f"{_many(len(diagnosis), 'finding')} in {_many(packets, 'packet')}: {told}.{lost}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def place(row: Any) -> str:
    """How much, when and where, of a row of `findings`."""
    share = f"{100 * row.share:.0f} %" if row.share >= 0.01 else "less than 1 %"
    span = f"{row.first:%H:%M:%S.%f}"[:-3]
    if row.last != row.first:
        span += " to " + f"{row.last:%H:%M:%S.%f}"[:-3]
    parts = [f"{_many(row.packets, 'packet')} ({share}), {span} UTC"]
    parts += [f"in {row.func}"] if pd.notna(row.func) else []
    parts += [f"up to {row.longest.total_seconds() * 1000:.1f} ms"] if pd.notna(row.longest) else []
    parts += [str(row.reason)] if pd.notna(row.reason) else []
    parts += [f"{name} {getattr(row, name)}" for name in ("netns", "dev") if pd.notna(getattr(row, name))]
    return ", ".join(parts)


def example(row: Any) -> str:
    """The flow that shows a finding most often, with a packet."""
    flow = row.flow if pd.notna(row.flow) else "headers not known"
    return f"{flow}, packet {row.example}"


def _finding(number: int, row: Any) -> list[str]:
    margin = " " * 4
    where, what = (textwrap.wrap(told, WIDTH - len(margin)) for told in (place(row), row.meaning))
    commands = [f"$ {line}" for line in row.check.splitlines()]
    lines = [*where, example(row), *what, *commands]
    return [f"{number:>2}. {row.severity.upper()}  {row.title}", *(margin + line for line in lines)]
