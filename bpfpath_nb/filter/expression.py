"""`Filter`: one expression, for the kernel and for stored packets.

The expression is compiled twice, for packets that begin with an Ethernet header and for those that begin with an IP
header, because a probe meets both: above the device layer on the way out there is no link header yet, and a tunnel
interface never has one. An expression that makes no sense on one of them (`arp` or `ether host` on bare IP) never
matches there.

VLAN tags. On the wire, and in a capture file, the tag is in the frame. The kernel takes the outermost one out on
reception and keeps it beside the frame. A classic filter is compiled for one or the other: to tcpdump on a live
interface `udp port 53` means tagged frames as well, to tcpdump on the file that it wrote, it doesn't. Here one rule
holds for both, live and stored: a tag that the kernel keeps beside the frame stays there, unless the expression says
`vlan`; then it is put back into the frame first. So a DNS packet is found by `udp port 53` whether or not its network
uses VLANs, `vlan 5 and udp port 53` finds it too, and asking a recording afterwards gives the answer that the kernel
gave. (A tag that is in the frame for the kernel too, an inner one of two for instance, has to be asked for with
`vlan`, as always.)

Names of hosts are resolved when a `Filter` is made, by libpcap and so by the machine that makes it. That can take as
long as DNS does, and the addresses stay as they were then.

Long filters. libpcap's optimizer takes time with the cube of the number of terms and can't be interrupted, so the
size of the unoptimized program is looked at first: up to 8,192 instructions, which is some 250 `host`, 120 `port`,
250 IPv6 `net` or 300 of `tcp port 1 or 2 or ...`. That takes libpcap about a second; twice as much would take ten.
What comes out is bounded as well, by the instructions that clang will make of it, so that the kernel does not refuse
what was accepted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal, NoReturn

from bpfpath_nb.errors import FilterError, OptionError
from bpfpath_nb.filter import cbpf, libpcap, mark, translate
from bpfpath_nb.filter.cbpf import Instruction
from bpfpath_nb.filter.libpcap import CompileError, Link, PcapProgram

MAX_LENGTH = 32768
"""Bytes of an expression. libpcap reads that in a second at worst."""

MAX_TERMS = 600
"""Terms joined by `and` and `or`. Even without its optimizer libpcap needs time with the square of them."""

MAX_UNOPTIMIZED = 8192
"""Instructions before libpcap's optimizer, which needs a second or so for as many."""

MAX_COST = 24000
"""Instructions of BPF for both link types. A jump reaches 32,767, and the rest of a probe needs room too."""

# No expression up to this length comes near MAX_UNOPTIMIZED (64 instructions for each three bytes of "||1").
_SURELY_SHORT = 256

MAX_SCRATCH = 8
"""Words of scratch memory, of eight bytes each on a stack of 512 that the probes need most of."""

_CONNECTIVES = frozenset({"and", "or", "&&", "||"})

_LINKS: tuple[Link, ...] = ("ethernet", "raw")
_NO_MATCH = (cbpf.Instruction(cbpf.RET, 0, 0, 0),)


class Filter:
    """A packet filter in the language of pcap-filter(7).

    Parameters
    ----------
    expression
        For instance ``"udp port 53"``. Empty: every packet.

    Raises
    ------
    FilterError
        The expression has a mistake, or asks for what cannot run in the kernel. The message says which.
    RequirementError
        libpcap is not installed.

    Examples
    --------
    >>> query = bytes.fromhex("4500001c000100004011" "00000a0000010a000002" "d431003500080000")
    >>> Filter("udp port 53").matches(query, link="raw")
    True
    """

    def __init__(self, expression: str = "") -> None:
        if not isinstance(expression, str):
            raise FilterError(
                f"A filter is text, not {type(expression).__name__}; every packet is meant by the empty text, ''."
            )
        self.expression = expression
        encoded = self._encode()
        self._programs: dict[Link, PcapProgram] = {}
        refusals: dict[Link, CompileError] = {}
        self._check_cost(encoded)
        for link in _LINKS:
            try:
                self._programs[link] = libpcap.compile_expression(encoded, link)
            except CompileError as error:
                refusals[link] = error
        if not self._programs:
            self._fail(refusals["ethernet"])
        for program in self._programs.values():
            cbpf.check(program.instructions)
        self._check_size()

    def __repr__(self) -> str:
        return f"Filter({self.expression!r})"

    def __eq__(self, other: object) -> bool:
        return self.expression == other.expression if isinstance(other, Filter) else NotImplemented

    def __hash__(self) -> int:
        return hash((Filter, self.expression))

    def __reduce__(self) -> tuple[type[Filter], tuple[str]]:
        return Filter, (self.expression,)

    @cached_property
    def wants_vlan(self) -> bool:
        """Whether the expression says `vlan`, so that packets are shown with their tag in the frame."""
        return "vlan" in self._words()

    @cached_property
    def matches_everything(self) -> bool:
        """Whether no packet is refused, not even one that is neither Ethernet nor IP."""
        return all(
            link in self._programs
            and len(self._programs[link].instructions) == 1
            and self._programs[link].instructions[0].k != 0
            for link in _LINKS
        )

    @cached_property
    def metadata(self) -> tuple[str, ...]:
        """What the expression asks besides the packet's bytes: for instance ``pkttype`` for `inbound`."""
        used = (name for program in self._programs.values() for name in cbpf.metadata_used(program.instructions))
        return tuple(dict.fromkeys(used))

    def matches(
        self,
        packet: bytes,
        *,
        link: Literal["ethernet", "raw"] = "ethernet",
        length: int | None = None,
        vlan: tuple[int, int] | None = None,
    ) -> bool:
        """Whether the filter takes a stored packet: libpcap's own verdict.

        Parameters
        ----------
        packet
            The packet's bytes, or the first of them. Past their end nothing matches.
        link
            What they begin with: an Ethernet header, or an IP header.
        length
            How long the packet was, in bytes, where `packet` is only its beginning. It is what `len`, `less` and
            `greater` mean.
        vlan
            Protocol and tag control information of a VLAN tag that the kernel kept beside the frame, for instance
            ``(0x8100, 5)``. It counts only where the expression says `vlan`.

        Raises
        ------
        FilterError
            The filter asks for what the bytes of a packet do not tell: `inbound`, `outbound`, `ifindex`.
        """
        if link not in _LINKS:
            raise ValueError(f"link is 'ethernet' or 'raw', not {link!r}")
        self.check_stored()
        program = self._programs.get(link)
        if program is None:
            return False
        try:
            packet = bytes(memoryview(packet))
        except TypeError:
            raise OptionError(f"matches() takes the bytes of a packet, not {type(packet).__name__}.") from None
        length = len(packet) if length is None else max(length, len(packet))
        if vlan is not None and link == "ethernet" and self.wants_vlan and len(packet) >= 14:
            tag = vlan[0].to_bytes(2, "big") + vlan[1].to_bytes(2, "big")
            packet, length = packet[:12] + tag + packet[12:], length + 4
        return program.matches(packet, length)

    def check_stored(self) -> None:
        """See that stored packets can be asked at all.

        Raises
        ------
        FilterError
            The filter asks for what the bytes of a packet do not tell.
        """
        if self.metadata:
            raise FilterError(
                f"The filter {self.expression!r} asks for what only the running kernel knows of a packet "
                f"({', '.join(self.metadata)}), which its bytes do not tell. Use `inbound`, `outbound` and `ifindex` "
                "in the filter of a capture; of a recording, ask by the columns of its frames."
            )

    def c_source(self) -> str:
        """The filter as C for one compilation unit with `packet.h`, which comes before it.

        It defines ``filter_ethernet`` and ``filter_raw``, one for each link type, and ``filter_match``, which takes
        the right one of them; each takes a ``const struct packet *`` and returns nonzero for a match. It has no text
        of the user's in it.
        """
        functions = [translate.function(f"filter_{link}", *self.program(link)) for link in _LINKS]
        return "\n".join([*functions, translate.chooser(everything=self.matches_everything)])

    def program(self, link: Link) -> tuple[tuple[Instruction, ...], bool]:
        """A link type's program, and whether it is shown frames with their tag in place."""
        program = self._programs.get(link)
        return (program.instructions, self.wants_vlan and link == "ethernet") if program else (_NO_MATCH, False)

    def _encode(self) -> bytes:
        try:
            encoded = self.expression.encode()
        except UnicodeEncodeError as error:
            raise FilterError(f"The filter is not valid text: {error.reason} at character {error.start}.") from None
        if b"\0" in encoded:
            raise FilterError("The filter has a NUL character in it, where libpcap would take it to end. Remove it.")
        if len(encoded) > MAX_LENGTH:
            raise FilterError(f"The filter has {len(encoded):,} bytes; {MAX_LENGTH:,} are the most. {cbpf.SHORTEN}")
        return encoded

    def _words(self) -> Iterator[str]:
        return (self.expression[word.start : word.end] for word in mark.tokens(self.expression))

    def _check_cost(self, encoded: bytes) -> None:
        if len(encoded) <= _SURELY_SHORT:
            return
        terms = 1 + sum(word in _CONNECTIVES for word in self._words())
        if terms > MAX_TERMS:
            raise FilterError(f"The filter has {terms:,} terms, and {MAX_TERMS:,} are the most. {cbpf.SHORTEN}")
        for link in _LINKS:
            try:
                program = libpcap.compile_expression(encoded, link, optimize=False)
            except CompileError:
                continue
            size = len(program.instructions)
            if size > MAX_UNOPTIMIZED:
                raise FilterError(
                    f"The filter is too long: {size:,} instructions before libpcap's optimizer, whose time grows with "
                    f"the cube, and {MAX_UNOPTIMIZED:,} are the most. {cbpf.SHORTEN}"
                )

    def _check_size(self) -> None:
        words = max(len(cbpf.scratch_used(self.program(link)[0])) for link in _LINKS)
        if words > MAX_SCRATCH:
            raise FilterError(
                f"The filter's arithmetic is nested too deeply: {words} values are waiting at once, and {MAX_SCRATCH} "
                "are the most that the kernel's stack has room for. Write `a + b + c` in place of `a + (b + c)`."
            )
        size = sum(translate.cost(*self.program(link)) for link in _LINKS)
        if size > MAX_COST:
            raise FilterError(
                f"The filter is too long: it becomes about {size:,} instructions in the kernel, and {MAX_COST:,} are "
                f"the most. {cbpf.SHORTEN}"
            )

    def _fail(self, error: CompileError) -> NoReturn:
        def complain(text: str) -> str:
            try:
                libpcap.compile_expression(text.encode(), "ethernet", optimize=False)
            except CompileError as again:
                return str(again)
            return ""

        message = str(error)
        place = mark.find(self.expression, message, complain)
        raise FilterError(
            f"libpcap does not accept this filter: {message}\n{mark.show(self.expression, place)}\n"
            "The language is described in the manual page pcap-filter(7)."
        ) from None
