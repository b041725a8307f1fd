"""Compile and load with bcc, without kernel headers.

bcc's usual trouble is that it wants the headers of the running kernel. It needs them only for what a program
includes, and ours includes nothing: structures are read at offsets from BTF. What remains is what bcc itself
asks for in its "kernel source" folder, and `bpf/headers` has that. The user-space headers of the distribution
(linux-libc-dev) serve for the rest.

Compiling is what takes the time, so a function is compiled once however often it is loaded. What differs from load to
load is one number: the program has an instruction that puts `LOAD_COOKIE` into a register, and before a load the
number that is meant is written over it.

And the calls of `bpf_rdonly_cast()` get their mark (casts.py): clang took that for a helper. So do the numbers that
stand for a map's only value (`ONLY_VALUES`): the kernel puts its address there; bcc can only call for it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import resource
import struct
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Self

from bpfpath_nb.errors import RequirementError, TracerError
from bpfpath_nb.tracer import source
from bpfpath_nb.tracer.find_bcc import import_bcc

UAPI = Path("/usr/include")

CALL, HELPER, KERNEL_FUNCTION = 0x85, 0x00, 0x20
"""First byte of a call; second byte where a helper is called, and where a function of the kernel is."""

KPROBE, SCHED_CLS, RAW_TRACEPOINT, NETFILTER = 2, 3, 17, 32

LOAD_COOKIE = 0x5B1D_74C6_0E93_A82F
"""Stands in the code, as a macro, where a load's own cookie belongs; random, so that it stands nowhere else."""
ONLY_VALUES = {
    f"ONLY_VALUE_{name}": 0x5B1D_74C8_0E93_A82F + number
    for number, name in enumerate(("state_map", "slots", "known_cookies", "cpu_rings"))
}
"""Macros, by the maps that have one value: they stand in the code where its address belongs."""
MAP_VALUE = 0x20
"""Second byte of an instruction that loads 64 bits: they are a map's value (BPF_PSEUDO_MAP_VALUE; kernel 5.2)."""
_HALF = 0xFFFFFFFF


def flags() -> list[str]:
    """What clang is told beside bcc's own flags.

    Raises
    ------
    RequirementError
        The user-space kernel headers are not installed.
    """
    if not (UAPI / "linux/types.h").is_file():
        raise RequirementError(
            "The user-space headers of Linux are not installed (/usr/include/linux): bcc needs them to "
            "compile. Install them "
            "(Debian, Ubuntu: apt install linux-libc-dev; Fedora: dnf install kernel-headers)."
        )
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    # bcc brings its own bpf.h; with the macro defined the system's copy stays out.
    return ["-D__LINUX_BPF_H__", f"-I{UAPI}", f"-I{UAPI / multiarch}", "-Wno-everything"]


def raise_memlock() -> None:
    """Lift RLIMIT_MEMLOCK where that is needed and allowed.

    Kernels before 5.11 count BPF memory there. Later ones do not, so that a refusal (a container without
    CAP_SYS_RESOURCE) is no error.
    """
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


class _Said:
    """What bcc, LLVM and the kernel's verifier print meanwhile, kept from standard output: that is our stream."""

    text = ""

    def __enter__(self) -> Self:
        sys.stdout.flush()
        self._saved = os.dup(1), os.dup(2)
        self._file = tempfile.TemporaryFile()
        for descriptor in (1, 2):
            os.dup2(self._file.fileno(), descriptor)
        return self

    def __exit__(self, *exception: object) -> None:
        for saved, descriptor in zip(self._saved, (1, 2), strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)
        self._file.seek(0)
        self.text = self._file.read().decode("utf-8", "replace")
        self._file.close()
        sys.stderr.write(self.text)

    def gist(self) -> str:
        """The line that tells what was wrong: the compiler's first error, or the verifier's last word."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line]
        verdicts = [line for line in lines if not line.startswith(("processed ", "bpf: "))]
        return (errors[:1] or verdicts[-1:] or [""])[0][:300]


class Program:
    """A compiled unit; its programs are loaded one by one.

    Parameters
    ----------
    text
        The C.
    cast
        The number of `bpf_rdonly_cast()` where the C calls it.

    Attributes
    ----------
    descriptors
        Of every program that is loaded.
    """

    def __init__(self, text: str, *, cast: int = 0) -> None:
        bcc = import_bcc()
        os.environ["BCC_KERNEL_SOURCE"] = str(source.folder() / "headers")
        raise_memlock()
        self.descriptors: list[int] = []
        self._library: Any = bcc.lib
        self._cast = cast
        self._prepared: set[str] = set()
        self._cookies: dict[str, int] = {}
        """Address of the cookie in the code, by function."""
        said = _Said()
        text = "".join(f"#define {name} {number:#x}ull\n" for name, number in ONLY_VALUES.items()) + text
        try:
            with said:
                self._bpf = bcc.BPF(text=text.encode(), cflags=flags())
        except Exception as error:
            raise TracerError(
                "The probes do not compile, or their maps cannot be made on this kernel: "
                f"{said.gist() or error}. `bpfpath doctor` shows what the machine lacks."
            ) from error

    def load(self, name: str, kind: int, attach_type: int | None = None, *, cookie: int | None = None) -> int:
        """Load a program, each time anew; its descriptor.

        Parameters
        ----------
        name
            The function's name in the C.
        kind
            Type of the program.
        attach_type
            What it will be attached to, where the kernel wants to know that at loading.
        cookie
            Of a function that asks for the cookie of its load: below 2**64.

        Raises
        ------
        OSError
            The kernel refuses it.
        """
        more = {} if attach_type is None else {"attach_type": attach_type}
        if name not in self._prepared:
            self._prepared.add(name)
            self._mark_casts(name)
            self._write_values(name)
        if cookie is not None:
            self._write_cookie(name, cookie)
        said = _Said()
        try:
            with said:
                descriptor: int = self._bpf.load_func(name.encode(), kind, **more).fd
        except Exception as error:
            raise OSError(f"the kernel refuses the program {name}: {said.gist() or error}") from error
        self._bpf.funcs.clear()  # else bcc would give out the same load again
        self.descriptors.append(descriptor)
        return descriptor

    def _write_cookie(self, name: str, cookie: int) -> None:
        """Write a load's cookie over the one in the code that bcc keeps and loads from."""
        if name not in self._cookies:
            start = self._library.bpf_function_start(self._bpf.module, name.encode())
            code = self._bpf.dump_func(name.encode())
            # Lower half, the empty rest of the second instruction, upper half.
            at = code.find(struct.pack("<III", LOAD_COOKIE & _HALF, 0, LOAD_COOKIE >> 32))
            if at < 0:
                raise TracerError(f"The program {name} has no place for a cookie. This is a bug; please report it.")
            self._cookies[name] = start + at
        for offset, half in ((0, cookie & _HALF), (8, cookie >> 32)):
            ctypes.memmove(self._cookies[name] + offset, struct.pack("<I", half), 4)

    def _mark_casts(self, name: str) -> None:
        """Write into the code that bcc keeps that what it calls by this number is a function of the kernel."""
        if not self._cast:
            return
        start = self._library.bpf_function_start(self._bpf.module, name.encode())
        call = struct.pack("<BBHI", CALL, HELPER, 0, self._cast)
        code = self._bpf.dump_func(name.encode())
        for at in range(0, len(code), len(call)):
            if code[at : at + len(call)] == call:
                ctypes.memset(start + at + 1, KERNEL_FUNCTION, 1)

    def _write_values(self, name: str) -> None:
        """Write the maps where numbers stand for their only values."""
        start = self._library.bpf_function_start(self._bpf.module, name.encode())
        code = self._bpf.dump_func(name.encode())
        for macro, number in ONLY_VALUES.items():
            halves = struct.pack("<III", number & _HALF, 0, number >> 32)
            at = code.find(halves)
            while at >= 0:
                table = self.map(macro.removeprefix("ONLY_VALUE_"))
                ctypes.memset(start + at - 3, code[at - 3] | MAP_VALUE, 1)
                ctypes.memmove(start + at, struct.pack("<III", table.map_fd, 0, 0), len(halves))
                at = code.find(halves, at + 1)

    def map(self, name: str) -> Any:
        """A map, as bcc's table."""
        return self._bpf[name.encode()]

    def consume(self) -> None:
        """Let bcc call back for each record of the rings that were opened through it."""
        self._bpf.ring_buffer_consume()

    def close(self) -> None:
        """Let go of programs and maps; the kernel frees them."""
        while self.descriptors:
            os.close(self.descriptors.pop())
        self._bpf.cleanup()
        atexit.unregister(self._bpf.cleanup)  # which bcc keeps, and with it all of this
