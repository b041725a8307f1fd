"""Serve captures, one after another, until the notebook goes away. See the package for the protocol."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

from bpfpath_nb.errors import BpfpathError, OptionError, PrivilegeError, RequirementError, TracerError
from bpfpath_nb.kernel import Kernel, loaded_modules
from bpfpath_nb.stream import REQUEST_LIMIT, Writer
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.session import Gone, capture, identity

PARENT_EVERY = 1.0
IDLE_LIMIT = 300.0
"""How long to wait for the next capture, in seconds; `BPFPATH_IDLE` in the environment sets another."""

UNREADABLE = "unreadable"
"""The key of a request that could not be understood; its value says why."""


class Requests:
    """The requests on standard input."""

    def __init__(self, descriptor: int, idle_limit: float = IDLE_LIMIT) -> None:
        self._descriptor = descriptor
        self._idle_limit = idle_limit
        self._parent = os.getppid()
        self._buffer = b""
        self._skipping = False

    def next(self) -> dict[str, Any]:
        """The next request.

        Raises
        ------
        Gone
            The input is closed, or nothing came for so long that nobody seems to want anything any more.
        """
        until = time.monotonic() + self._idle_limit
        while (request := self.within(min(PARENT_EVERY, self._idle_limit))) is None:
            if time.monotonic() >= until:
                raise Gone
        return request

    def within(self, seconds: float) -> dict[str, Any] | None:
        """The next request, or None when none came in so many seconds.

        Raises
        ------
        Gone
            The input is closed.
        """
        if b"\n" not in self._buffer:
            readable, _, _ = select.select([self._descriptor], [], [], seconds)
            # The input may outlive the notebook, in a process that it forked.
            if os.getppid() != self._parent:
                raise Gone
            if not readable:
                return None
            data = os.read(self._descriptor, 65536)
            if not data:
                raise Gone
            self._buffer += data
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            if len(line) > REQUEST_LIMIT:  # to its end, so that what follows is understood again
                self._skipping, self._buffer = True, b""
            return None
        self._buffer = rest
        if self._skipping or len(line) > REQUEST_LIMIT:
            self._skipping = False
            return {UNREADABLE: f"it is longer than {REQUEST_LIMIT} bytes"}
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            return {UNREADABLE: f"it is not JSON ({type(error).__name__})"}
        return request if isinstance(request, dict) else {UNREADABLE: "it is not an object"}


class Sink:
    """Standard output. Only here does a failure to write mean that the notebook is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        """Write a part, at least."""
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            raise Gone from error

    def flush(self) -> None:
        """Nothing is held back."""


def serve(requests: Requests, sink: Sink) -> None:
    """Answer each start with a stream."""
    kernel = Kernel.running()
    while True:
        request = requests.next()
        if loaded_modules() != kernel.loaded:
            kernel = Kernel.running()
        if "stop" in request:
            continue  # it crossed with the capture's own end

        def listen(seconds: float) -> str:
            message = requests.within(seconds)
            if message is None or "stop" not in message:
                return ""
            return "interrupted" if message["stop"] == "interrupted" else "stopped"

        try:
            if "start" not in request:
                why = request.get(UNREADABLE, "it has no `start`")
                raise OptionError(f"The tracer does not understand what it was asked: {why}.")
            options = Request.of(request["start"])
            if os.geteuid() != 0:
                raise PrivilegeError(
                    "Loading BPF programs needs root, and the tracer runs as an ordinary user. Start the "
                    "notebook as root, "
                    "allow `sudo -n` for this command, or trace another host with on='ssh://root@host'."
                )
            capture(options, kernel, sink, listen)
        except Gone:
            raise
        except BpfpathError as error:
            refuse(sink, error)
        except Exception as error:
            traceback.print_exc()
            refuse(sink, failure(error))


def failure(error: Exception) -> BpfpathError:
    """What to tell of an error that nobody foresaw."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return RequirementError(
            f"The tracer needs more open files than the {limit} that it may have. Raise the hard limit (`ulimit -Hn`, "
            "`LimitNOFILE=` of a service, `--ulimit nofile=` of a container), or name fewer `namespaces` or "
            "`functions`."
        )
    return TracerError(f"The tracer failed: {type(error).__name__}: {error}. This is a bug; please report it.")


def refuse(sink: Sink, error: BpfpathError) -> None:
    """A stream that only says why there is no capture."""
    Writer(sink, {**identity(), "error": error.to_record()}).close()


def idle_limit() -> float:
    """How long to wait for the next capture, in seconds."""
    with suppress(ValueError):
        return max(0.1, float(os.environ.get("BPFPATH_IDLE", "")))
    return IDLE_LIMIT


def allow_many_files() -> None:
    """A namespace takes some fifteen descriptors, a single kprobe two, and the usual limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Run the tracer."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Ctrl-C in a terminal, or the notebook's interrupt, is meant for the notebook; it will tell.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("BCC_PROBE_LIMIT", "100000")
    allow_many_files()
    # Whatever else prints goes to the error output; standard output is the stream.
    sink = Sink(os.dup(1))
    os.dup2(2, 1)
    with suppress(Gone):
        serve(Requests(0, idle_limit()), sink)
    return 0
