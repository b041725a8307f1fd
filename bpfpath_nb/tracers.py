"""Start tracer processes, and keep one that is idle for the next capture.

The tracer is a process of its own in every case; what differs is the command that starts it:

- as root: this interpreter;
- as an ordinary user: this interpreter through `sudo -n`, which asks nothing and fails at once where a password
would be wanted;
- `ssh://user@host`: the Python of the other host through OpenSSH, as root there or through its `sudo -n`.

All three speak the same protocol over standard input and output, and end when their input closes. A tracer
whose capture has ended is kept, idle: it holds nothing in the kernel, and arms the next capture in a fraction
of the time. It leaves by itself after some minutes, or with this process.

The interpreter is started with -P, so that no file of the working directory can pose as a module in a
privileged process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, unquote, urlsplit

from bpfpath_nb.errors import BpfpathError, HostError, OptionError, PrivilegeError, TracerError
from bpfpath_nb.printable import printable_lines

MODULE = "bpfpath_nb.tracer"

KEEP_IDLE = 240.0
"""How long an idle tracer is used again, in seconds; it leaves by itself somewhat later."""

WATCHDOG_WITHIN = 6.0
"""How long the tracer's watchdog takes to end a tracer whose input has closed, with some to spare."""

KILL_WITHIN = 5.0

_WAYS_OUT = (
    "Loading BPF programs needs root. Three ways out: start the notebook as root; let sudo start the tracer "
    "without a password, with a line "
    "like `{user} ALL=(root) NOPASSWD: {python} -P -m bpfpath_nb.tracer` in /etc/sudoers.d/bpfpath (only where {user} "
    "can write neither to that Python nor to its packages: who can is root by this line); or trace another host as "
    "root, with on='ssh://root@host'."
)

_idle: defaultdict[str, list[TracerProcess]] = defaultdict(list)
_lock = threading.Lock()


class TracerProcess:
    """A tracer, here or on another host.

    Attributes
    ----------
    output : int
        Descriptor to read the streams from.
    """

    def __init__(self, on: str) -> None:
        self.on = on
        self.idle_since = 0.0
        self._cut_off = False
        command, environment = _command(on)
        self.is_direct = command[0] == sys.executable
        """Whether the process that was started is the tracer itself."""
        # A file, not a pipe: nobody has to read it, and a chatty compiler never blocks the tracer.
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the notebook, which then tells the tracer
            )
        except FileNotFoundError as error:
            self._errors.close()
            raise _no_program(command[0], on) from error
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()

    @property
    def pid(self) -> int:
        """Of the process that was started here: the tracer, or the sudo or ssh that leads to it."""
        return self._process.pid

    def say(self, message: dict[str, Any]) -> None:
        """Send a request. A tracer that is gone shows when its stream is read."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            data = memoryview(json.dumps(message).encode() + b"\n")
            while data:  # a raw pipe may take a part
                data = data[self._process.stdin.write(data) or 0 :]

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def end(self, patience: float = 5.0) -> bool:
        """End it: close its input, and kill it where that does not help. What it has sent can still be read.

        Returns
        -------
        bool
            Whether the tracer is known to be gone. Behind sudo or ssh only these can be killed here, if that much;
            the tracer's own watchdog ends it some seconds after its input has closed.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._ends_within(patience):
            return not self._cut_off
        if self.is_direct:
            self._process.kill()
        elif not self._ends_within(WATCHDOG_WITHIN):
            self._cut_off = True
            with contextlib.suppress(PermissionError):  # sudo is root's
                self._process.kill()
        return self._ends_within(KILL_WITHIN) and not self._cut_off

    def _ends_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End it, and let go of all that belongs to it. Nobody may be reading from it."""
        assert self._process.stdout is not None
        self.end()
        self._process.stdout.close()
        self._errors.close()

    def explain(self, error: BpfpathError) -> BpfpathError:
        """Why the tracer said nothing: from how it ended and what it printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        printed = self._printed()
        if "sudo:" in printed:
            user = os.environ.get("USER", "user")
            return PrivilegeError(
                _WAYS_OUT.format(user=user, python=sys.executable) + f" (sudo said: {printed.strip()[:200]})"
            )
        if self.on != "local":
            return HostError(
                f"The tracer on {self.on} did not start: {printed.strip()[-500:] or 'no message'}. Check that "
                f"`{shlex.join(_command(self.on)[0][:-1])} true` works without a password, and that "
                "bpfpath_nb is installed for "
                "the Python of that host (name another one with on='ssh://user@host?python=/path/to/python')."
            )
        if printed.strip():
            return TracerError(f"{error} Its last words: {printed.strip()[-500:]}")
        return error

    def _printed(self) -> str:
        self._errors.seek(0)
        return printable_lines(self._errors.read()[-8192:].decode("utf-8", "replace"))


def acquire(on: str) -> TracerProcess:
    """An idle tracer for `on`, or a new one."""
    if not isinstance(on, str) or not on.isprintable():
        raise _bad_on(on)
    with _lock:
        while _idle[on]:
            tracer = _idle[on].pop()
            # One that has waited for long is about to leave: a request to it could get no answer.
            if tracer.alive and time.monotonic() - tracer.idle_since < KEEP_IDLE:
                return tracer
            tracer.close()
    return TracerProcess(on)


def release(tracer: TracerProcess) -> None:
    """Keep a tracer whose capture has ended. One is enough; others are closed."""
    with _lock:
        if tracer.alive and not _idle[tracer.on]:
            tracer.idle_since = time.monotonic()
            _idle[tracer.on].append(tracer)
            return
    tracer.close()


@atexit.register
def close_idle() -> None:
    """End all tracers that are idle."""
    with _lock:
        idle = [tracer for tracers in _idle.values() for tracer in tracers]
        _idle.clear()
    for tracer in idle:
        tracer.close()


def _forget() -> None:
    """In a forked child the tracers are the parent's, and nobody there will open a lock that was held."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _idle.clear()


os.register_at_fork(after_in_child=_forget)


def _command(on: str) -> tuple[list[str], dict[str, str] | None]:
    """The command that starts a tracer, and its environment."""
    if on == "local":
        package = str(Path(__file__).resolve().parents[1])
        tracer = [sys.executable, "-P", "-m", MODULE]
        if os.geteuid() == 0:
            return tracer, {**os.environ, "PYTHONPATH": package}
        # The very command that a line in sudoers can allow: no environment, nothing of the user's choice.
        return ["sudo", "-n", "--", *tracer], None
    try:
        url = urlsplit(on)
        port = url.port
    except ValueError:
        raise _bad_on(on) from None
    if url.scheme != "ssh" or not url.hostname or url.path not in ("", "/"):
        raise _bad_on(on)
    python = parse_qs(url.query).get("python", ["python3"])[0]
    host = f"{unquote(url.username)}@{url.hostname}" if url.username else url.hostname
    if host.startswith("-"):
        raise OptionError(f"{host[:200]!r} is no host name.")
    tracer_there = f"{shlex.quote(python)} -m {MODULE}"
    script = f'cd / && if [ "$(id -u)" = 0 ]; then exec {tracer_there}; else exec sudo -n {tracer_there}; fi'
    # BatchMode: a question for a password would wait for ever. The keep-alives notice a host that is gone.
    options = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15"]
    where = ["-p", str(port)] if port else []
    return ["ssh", *options, *where, "--", host, script], None


def _bad_on(on: object) -> OptionError:
    return OptionError(
        f"`on` wants 'local' or 'ssh://user@host', with :port and ?python=/path where needed; not {str(on)[:200]!r}."
    )


def _no_program(program: str, on: str) -> BpfpathError:
    if on == "local":
        return PrivilegeError(
            _WAYS_OUT.format(user=os.environ.get("USER", "user"), python=sys.executable)
            + f" ({program} is not installed)"
        )
    return HostError(
        f"{program} is not installed: tracing on {on} goes through it. Debian: apt install openssh-client."
    )
