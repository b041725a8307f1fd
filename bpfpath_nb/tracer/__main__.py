"""Serve captures, one after another, until the notebook goes away. See the package for the protocol."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from typing import Any

from bpfpath_nb.errors import BpfpathError, PrivilegeError, TracerError
from bpfpath_nb.kernel import Kernel
from bpfpath_nb.stream import Writer
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.session import capture, identity

PARENT_EVERY = 1.0
LONGEST_LINE = 1 << 20


class Gone(Exception):  # noqa: N818 - not an error: the end
    """The notebook's end of the pipes is closed."""


class Requests:
    """The requests on standard input."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._parent = os.getppid()
        self._buffer = b""

    def next(self) -> dict[str, Any]:
        """The next request, however long it takes."""
        while (request := self.within(None)) is None:
            pass
        return request

    def within(self, seconds: float | None) -> dict[str, Any] | None:
        """The next request, or None when none came in so many seconds.

        Raises
        ------
        Gone
            The input is closed.
        """
        if b"\n" not in self._buffer:
            readable, _, _ = select.select([self._descriptor], [], [], PARENT_EVERY if seconds is None else seconds)
            # The input may outlive the notebook, in a process that it forked.
            if os.getppid() != self._parent:
                raise Gone
            if not readable:
                return None
            data = os.read(self._descriptor, 65536)
            if not data or len(self._buffer) + len(data) > LONGEST_LINE:
                raise Gone
            self._buffer += data
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        try:
            request = json.loads(line)
        except ValueError:
            raise Gone from None  # who writes that is not our notebook
        return request if isinstance(request, dict) else {}


def serve(requests: Requests, sink: Any) -> None:
    """Answer each start with a stream."""
    kernel = Kernel.running()
    while True:
        request = requests.next()
        if "start" not in request:
            continue  # a stop that crossed with the capture's own end

        def listen(seconds: float) -> bool:
            message = requests.within(seconds)
            return message is not None and "stop" in message

        try:
            options = Request.of(request["start"])
            if os.geteuid() != 0:
                raise PrivilegeError(
                    "Loading BPF programs needs root, and the tracer runs as an ordinary user. Start the "
                    "notebook as root, "
                    "allow `sudo -n` for this command, or trace another host with on='ssh://root@host'."
                )
            capture(options, kernel, sink, listen)
        except (Gone, BrokenPipeError):
            raise
        except BpfpathError as error:
            refuse(sink, error)
        except Exception as error:
            traceback.print_exc()
            refuse(
                sink,
                TracerError(f"The tracer failed: {type(error).__name__}: {error}. This is a bug; please report it."),
            )


def refuse(sink: Any, error: BpfpathError) -> None:
    """A stream that only says why there is no capture."""
    Writer(sink, {**identity(), "error": error.to_record()}).close()


def main() -> int:
    """Run the tracer."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Ctrl-C in a terminal, or the notebook's interrupt, is meant for the notebook; it will tell.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("BCC_PROBE_LIMIT", "100000")
    # Whatever else prints goes to the error output; standard output is the stream.
    with os.fdopen(os.dup(1), "wb", buffering=0) as sink:
        os.dup2(2, 1)
        try:
            serve(Requests(0), sink)
        except (Gone, BrokenPipeError):
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
