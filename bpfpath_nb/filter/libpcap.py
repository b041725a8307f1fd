"""libpcap through ctypes: the one authority on what a filter means.

pcap-filter(7) is decades of special cases (which ethertypes `atalk` covers, what `port` means for a fragment, how
`vlan` shifts every later offset), and people trust what tcpdump does with an expression. So nothing here parses
filters: libpcap compiles the text to classic BPF, and `pcap_offline_filter` runs that program on stored packets.

Only six functions are needed, all of them stable since libpcap 0.8, so the library is opened by its soname and no
header or compiler takes part. Programs are compiled on a "dead" handle, one that is not attached to an interface: the
result depends on the expression and the link type alone, not on the machine. One consequence is that `vlan` compiles
to a look at the bytes of the frame, and never to the kernel's out-of-band tag.

Before 1.10 the compiler kept its state in global variables, so one lock serialises all calls. ctypes releases
Python's own lock meanwhile: a slow host name look-up stalls other filters, but not the notebook.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from typing import Literal

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.filter.cbpf import Instruction

Link = Literal["ethernet", "raw"]

# Numbers of link types as pcap_open_dead() takes them (pcap/dlt.h). DLT_RAW differs between systems; 12 is Linux's.
DLT: dict[Link, int] = {"ethernet": 1, "raw": 12}

# tcpdump's own default. It shows up as the operand of "ret" for a match, and nowhere else.
SNAPLEN = 262144
NETMASK_UNKNOWN = 0xFFFFFFFF

_SONAMES = ("libpcap.so.1", "libpcap.so.0.8")
_lock = threading.Lock()


class CompileError(Exception):
    """What libpcap says about an expression that it does not compile."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


class _PacketHeader(ctypes.Structure):
    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    for name in _SONAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        break
    else:
        raise RequirementError(
            "Packet filters need libpcap, and this machine has none. Install it: `apt install libpcap0.8` on Debian "
            "and Ubuntu, `dnf install libpcap` on Fedora and RHEL."
        )
    library.pcap_open_dead.restype = ctypes.c_void_p
    library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
    library.pcap_compile.restype = ctypes.c_int
    library.pcap_compile.argtypes = (
        ctypes.c_void_p,
        ctypes.POINTER(_Program),
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint32,
    )
    library.pcap_geterr.restype = ctypes.c_char_p
    library.pcap_geterr.argtypes = (ctypes.c_void_p,)
    library.pcap_freecode.restype = None
    library.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
    library.pcap_close.restype = None
    library.pcap_close.argtypes = (ctypes.c_void_p,)
    library.pcap_offline_filter.restype = ctypes.c_int
    library.pcap_offline_filter.argtypes = (ctypes.POINTER(_Program), ctypes.POINTER(_PacketHeader), ctypes.c_char_p)
    return library


class PcapProgram:
    """A compiled filter. libpcap owns its memory until this object goes."""

    def __init__(self, library: ctypes.CDLL, program: _Program) -> None:
        self._library = library
        self._program = program
        weakref.finalize(self, library.pcap_freecode, ctypes.byref(program))

    @functools.cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """The program as data."""
        program = self._program
        return tuple(Instruction(raw.code, raw.jt, raw.jf, raw.k) for raw in program.instructions[: program.length])

    def matches(self, packet: bytes, length: int) -> bool:
        """What `pcap_offline_filter` says of `packet`, the first bytes of one that had `length` bytes."""
        header = _PacketHeader(captured=len(packet), length=length)
        return bool(self._library.pcap_offline_filter(ctypes.byref(self._program), ctypes.byref(header), packet))


def compile_expression(expression: bytes, link: Link, *, optimize: bool = True) -> PcapProgram:
    """Have libpcap compile `expression`.

    Parameters
    ----------
    expression
        Text of the filter, without NUL bytes.
    link
        What a packet begins with: an Ethernet header or an IP header.
    optimize
        Run libpcap's optimizer, whose time grows with the cube of the number of terms.

    Raises
    ------
    CompileError
        With libpcap's own words.
    RequirementError
        There is no libpcap.
    """
    library = _library()
    with _lock:
        handle = library.pcap_open_dead(DLT[link], SNAPLEN)
        if not handle:
            raise MemoryError("pcap_open_dead")
        try:
            program = _Program()
            if library.pcap_compile(handle, ctypes.byref(program), expression, int(optimize), NETMASK_UNKNOWN) < 0:
                message: bytes = library.pcap_geterr(handle)
                raise CompileError(message.decode("utf-8", "replace").strip())
        finally:
            library.pcap_close(handle)
    return PcapProgram(library, program)
