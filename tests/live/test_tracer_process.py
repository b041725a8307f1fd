"""The tracer as a process: it leaves when nobody wants it, in whatever state it is, and stays in step until then."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import is_there, programs, soon

from bpfpath_nb import Capture, tracers
from bpfpath_nb.errors import ArmTimeoutError, OptionError
from bpfpath_nb.stream import REQUEST_LIMIT, Reader

ROOT = Path(__file__).parents[2]
ENDLESS = r"/([a-z_]+)+!/"
"""A pattern that no name ends with, and that takes twice as long with each character of a name."""


def python(code: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,  # type: ignore[call-overload]
    )


@contextmanager
def bare_tracer() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "bpfpath_nb.tracer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        bufsize=0,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


@contextmanager
def namespaces(prefix: str, count: int) -> Iterator[list[str]]:
    names = [f"{prefix}{number}" for number in range(count)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


# -- it leaves


def test_a_stopped_tracer_goes_with_its_notebook() -> None:
    notebook = python(
        """
        import time
        from bpfpath_nb import Capture
        cap = Capture("udp port 9")
        print(cap._tracer.pid, flush=True)
        time.sleep(60)
        """
    )
    assert notebook.stdout is not None
    tracer = int(notebook.stdout.readline())
    assert programs(tracer)
    os.kill(tracer, signal.SIGSTOP)
    notebook.kill()
    notebook.communicate(timeout=10)
    try:
        assert soon(lambda: not is_there(tracer))
    finally:
        if is_there(tracer):
            os.kill(tracer, signal.SIGKILL)


def test_a_busy_tracer_goes_when_its_input_closes() -> None:
    with bare_tracer() as tracer:
        assert tracer.stdin is not None
        tracer.stdin.write(json.dumps({"start": {"functions": ENDLESS}}).encode() + b"\n")
        time.sleep(3)
        assert tracer.poll() is None, "the pattern was to keep it busy"
        tracer.stdin.close()
        tracer.stdin = None
        tracer.wait(8)


def test_an_endless_pattern_ends_with_the_time_for_arming() -> None:
    tracers.close_idle()
    with pytest.raises(ArmTimeoutError, match="nothing is attached"):
        Capture(functions=ENDLESS, timeout=3)


def test_what_is_not_known_to_be_detached_is_not_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind sudo: the process that can be killed here is not the tracer, and the tracer does not hear."""
    tracers.close_idle()
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(tracers, "_command", lambda on: (["env", *slow], None))
    monkeypatch.setattr(tracers, "WATCHDOG_WITHIN", 0.1)
    with pytest.raises(ArmTimeoutError, match="may stay attached"):
        Capture("udp port 9", timeout=0.1)


def test_an_idle_tracer_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    tracers.close_idle()
    monkeypatch.setenv("BPFPATH_IDLE", "1")
    with Capture("udp port 9"):
        time.sleep(1.5)  # a capture is not idleness
    (tracer,) = tracers._idle["local"]
    assert tracer.alive
    assert soon(lambda: not tracer.alive, 4)
    with Capture("udp port 9") as cap:
        assert cap.status.state == "capturing"


def test_a_capture_that_nobody_can_reach_stops() -> None:
    cap: Capture | None = Capture("udp port 9")
    assert cap is not None
    assert cap._tracer is not None
    tracer = cap._tracer.pid
    assert programs(tracer)
    cap = None
    gc.collect()
    assert soon(lambda: not programs(tracer))
    assert soon(lambda: [kept.pid for kept in tracers._idle["local"]] == [tracer]), "it is kept for the next one"


# -- it is stopped by whom, and again


def test_stop_can_be_repeated_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    cap = Capture("udp port 9")
    assert cap._tracer is not None
    tracer = cap._tracer.pid

    def interrupted(seconds: float) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cap._stream.ended, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cap.stop()
    cap.stop()
    assert cap.status.state == "stopped"
    assert not programs(tracer)
    assert [kept.pid for kept in tracers._idle["local"]] == [tracer]
    with Capture("udp port 9") as after:  # the tracer has heard "stop" twice, and is in step
        assert after.status.state == "capturing"


def test_a_forked_child_does_not_stop_its_parents_capture() -> None:
    notebook = python(
        """
        import os, sys, time
        from bpfpath_nb import Capture
        cap = Capture("udp port 9")
        child = os.fork()
        if child == 0:
            cap.stop()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        time.sleep(0.3)
        print(cap.status.state)
        print(cap.stop().status.state)
        """
    )
    assert notebook.communicate(timeout=30)[0] == "capturing\nstopped\n"


# -- it stays in step


def test_what_it_cannot_read_is_answered() -> None:
    with bare_tracer() as tracer:
        assert tracer.stdin is not None
        assert tracer.stdout is not None
        for line, says in (
            (b"nonsense", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b"[1]", "not an object"),
            (b"{}", "no `start`"),
            (b'{"start": "' + b"x" * (REQUEST_LIMIT + 100_000) + b'"}', "longer"),
        ):
            data = memoryview(line + b"\n")
            while data:
                data = data[tracer.stdin.write(data) :]
            with pytest.raises(OptionError, match=says):
                Reader(tracer.stdout.fileno())
        tracer.stdin.write(b'{"start": {"filter": "udp port 9"}}\n{"stop": "stopped"}\n')
        *_, last = Reader(tracer.stdout.fileno())
        assert last.end is not None
        assert last.end["reason"] == "stopped"


# -- open files


def test_many_namespaces_need_many_files(lab_prefix: str) -> None:
    """The soft limit is raised to the hard one."""
    with namespaces(lab_prefix, 30):
        notebook = python(
            """
            from bpfpath_nb import Capture
            with Capture("udp port 9") as cap: pass
            print(cap.status.state, [r for r in cap.recording.start.refused if "open files" in r.why])
            """,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096)),
        )
        assert notebook.communicate(timeout=60)[0] == "stopped []\n"


def test_too_few_files_cost_namespaces_and_not_the_capture(lab_prefix: str) -> None:
    with namespaces(lab_prefix, 30):
        notebook = python(
            """
            from bpfpath_nb import Capture
            with Capture("udp port 9") as cap: pass
            refused = [r.name for r in cap.recording.start.refused if "open files" in r.why]
            print(cap.status.state, len(refused) > 0)
            """,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        )
        assert notebook.communicate(timeout=60)[0] == "stopped True\n"


def test_a_namespace_that_cannot_be_joined_is_told_and_the_capture_goes_on(lab_prefix: str) -> None:
    tracers.close_idle()
    with Capture("udp port 9") as cap:
        assert cap._tracer is not None
        tracer = cap._tracer.pid
        before = cap.quality["refused"]
        open_files = len(os.listdir(f"/proc/{tracer}/fd"))  # noqa: PTH208
        resource.prlimit(tracer, resource.RLIMIT_NOFILE, (open_files + 2, open_files + 2))
        with namespaces(lab_prefix, 2) as names:
            assert soon(lambda: cap.quality["refused"] >= before + 2)
            assert cap.status.state == "capturing"
            told = {refused.name: refused.why for refused in cap.recording.start.refused}
            for name in names:
                assert "open files" in told[f"tc in {name}"]
    assert cap.status.state == "stopped"
    tracers.close_idle()  # its limit is not for the next one
