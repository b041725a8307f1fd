"""Which packets: an expression of pcap-filter(7), run in the kernel and on stored packets.

::

    "udp port 53" --libpcap--> classic BPF --translate--> C --clang--> BPF, in TC programs and probes
                                   |
                                   +--libpcap--> Filter.matches(bytes)

`libpcap` compiles and interprets, `cbpf` knows the instructions and refuses what has no translation, `translate`
writes the C (its loads are in `bpf/packet.h`), `mark` points at mistakes, and `expression` puts that together as
`Filter`.
"""

from __future__ import annotations

from bpfpath_nb.filter.expression import Filter

__all__ = ["Filter"]
