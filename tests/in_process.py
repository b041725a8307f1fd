"""A capture by a tracer in this process, so that a test can change how it is done."""

from __future__ import annotations

import io
import threading

from bpfpath_nb import Recording
from bpfpath_nb.kernel import Kernel
from bpfpath_nb.tracer import session
from bpfpath_nb.tracer.request import Request


def record(request: Request, traffic: threading.Thread) -> Recording:
    """Start the traffic when the probes are armed, and stop when it has ended."""

    def listen(seconds: float) -> str:
        """Called when the probes are armed, again and again."""
        if traffic.ident is None:
            traffic.start()
        traffic.join(seconds)
        return "" if traffic.is_alive() else "stopped"

    stream = io.BytesIO()
    session.capture(request, Kernel.running(), stream, listen)
    stream.seek(0)
    return Recording.from_stream(stream)
