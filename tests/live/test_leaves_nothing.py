"""However it ends: no program, link, filter, qdisc or process of ours stays (the fixture `leaves_nothing` looks)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from processes import programs, soon, tracer_of

from bpfpath_nb import Capture, tracers
from bpfpath_nb.errors import ArmTimeoutError, TracerError
from bpfpath_nb.lab import Lab
from bpfpath_nb.tracer.syscall import program_ids

ROOT = Path(__file__).parents[2]


def notebook(code: str) -> subprocess.Popen[str]:
    """A Python process of its own that captures; it has printed its first line when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "armed\n"
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_notebooks_process_is_killed(end: signal.Signals) -> None:
    process = notebook(
        """
        import time
        from bpfpath_nb import Capture
        cap = Capture("udp port 9")
        print("armed", flush=True)
        time.sleep(60)
        """
    )
    own = set(program_ids()) & programs(tracer_of(process.pid))
    assert own, "the capture has programs in the kernel"
    process.send_signal(end)
    process.wait(10)
    assert soon(lambda: not own & set(program_ids())), "its programs stay"


def test_it_is_killed_while_a_forked_child_holds_its_pipes() -> None:
    process = notebook(
        """
        import os, time
        from bpfpath_nb import Capture
        cap = Capture("udp port 9")
        if os.fork() == 0:
            time.sleep(6)
            os._exit(0)
        print("armed", flush=True)
        time.sleep(60)
        """
    )
    process.kill()
    process.wait(10)


def test_the_tracer_is_killed(lab: Lab) -> None:
    cap = Capture("udp port 53")
    lab.run("client", ["dig", "+short", "+time=1", "+tries=1", f"@{lab.address('server')}", "www.example.test"])
    time.sleep(0.3)
    assert cap._tracer is not None
    os.kill(cap._tracer.pid, signal.SIGKILL)
    with pytest.raises(TracerError, match="kept"):
        cap.wait(seconds=5)
    assert cap.status.state == "failed"
    assert len(cap.packets) == 2, "what it had sent is kept"
    cap.stop()
    with Capture("udp port 9") as after:
        assert after.status.state == "capturing"


def test_a_forgotten_capture_ends_with_its_process() -> None:
    process = notebook(
        """
        from bpfpath_nb import Capture
        cap = Capture("udp port 9")
        print("armed", flush=True)
        """
    )
    assert process.wait(10) == 0


def test_arming_takes_too_long() -> None:
    tracers.close_idle()
    with pytest.raises(ArmTimeoutError, match="timeout"):
        Capture("udp port 9", timeout=0.01)


def test_interrupt_while_waiting_keeps_the_data(lab: Lab) -> None:
    process = notebook(
        """
        from bpfpath_nb import Capture
        cap = Capture("udp port 6020")
        print("armed", flush=True)
        cap.wait(seconds=60)
        print(cap.status.state, cap.status.reason, len(cap.packets), flush=True)
        """
    )
    send = "import socket, sys; s = socket.socket(2, 2); s.sendto(b'x', (sys.argv[1], 6020))"
    lab.run("client", ["python3", "-c", send, lab.address("router")])
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert out == "stopped interrupted 1\n"
    assert process.returncode == 0


def test_an_exception_in_the_block_still_detaches() -> None:
    with pytest.raises(ZeroDivisionError), Capture("udp port 9") as cap:
        1 / 0  # noqa: B018
    assert cap.status.state == "stopped"
