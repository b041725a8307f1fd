"""A second process that ends the tracer when its notebook is gone and it does not notice.

The tracer looks at its input between two steps. It cannot while it is stopped (SIGSTOP), nor while one call takes for
ever: a regular expression holds the interpreter's lock until it has matched, so no thread of the tracer could look
instead. And the notebook may be unable to kill it: behind `sudo` or `ssh` it only reaches these. So a child process
looks, forked before anything is opened or imported. It does next to nothing: it waits for the other end of standard
input to be closed or the tracer's parent to change, leaves the tracer some time to detach in good order, then kills
it. What hangs on the tracer's descriptors goes with it.

It ends with the tracer, by the kernel's hand, and holds neither its output nor its error output open.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from pathlib import Path

LOOK_EVERY = 1.0
DETACH_WITHIN = 3.0
"""How long the tracer may take to end by itself once the notebook is gone."""

PR_SET_PDEATHSIG = 1


def start() -> None:
    """Fork the watchdog. It returns in the tracer only."""
    tracer, parent = os.getpid(), os.getppid()
    if os.fork() == 0:
        try:
            _watch(tracer, parent)
        finally:
            os._exit(0)


def _watch(tracer: int, parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # as long as there is a tracer, it is watched
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    closed = select.poll()
    closed.register(0, select.POLLRDHUP)  # no POLLIN: what is there to read is the tracer's
    while os.getppid() == tracer:
        if closed.poll(LOOK_EVERY * 1000) or _parent(tracer) != parent:
            time.sleep(DETACH_WITHIN)
            if os.getppid() == tracer:
                os.kill(tracer, signal.SIGKILL)
            return


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
