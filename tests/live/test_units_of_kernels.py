"""The C of captures on kernels that this one is not, compiled here: what the compiler refuses there it refuses here.

LLVM ends the process where a program needs more stack than BPF has (512 bytes), so each compiles in one of its own. The
kernels' verifiers are asked by `make test-kernels`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import sys
from pathlib import Path
from bpfpath_nb.kernel import facts
from bpfpath_nb.tracer import casts, unit
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.toolchain import Program

release, what, known = sys.argv[1], sys.argv[2], Path(sys.argv[3])
unit.has_fetch_add = lambda: release != "5.10"
casts.macros = lambda types: {}
request = Request(
    filter="udp port 53 or tcp[tcpflags] & tcp-syn != 0",
    returns=what == "returns",
    namespaces=("here",) if what == "namespaces" else None,
)
text, plan = unit.unit(request, facts.load(known / f"{release}.json.gz"), with_kprobes=True)
program = Program(text)
print(*(len(program._bpf.dump_func(name)) // 8 for name in (b"kprobe", b"kprobe_passing", b"tracepoint", b"tc")))
"""


@pytest.mark.parametrize("what", ["plain", "returns", "namespaces"])
@pytest.mark.parametrize("release", ["5.10", "6.1", "6.12", "7.2"])
def test_it_compiles(release: str, what: str) -> None:
    """Without casts, which take the least stack."""
    known = Path(__file__).parents[1] / "facts"
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, release, what, str(known)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"the compiler ended the process: {done.stderr[-500:]}"
    instructions = [int(number) for number in done.stdout.split()]
    assert len(instructions) == 4
    assert min(instructions) > 1000
