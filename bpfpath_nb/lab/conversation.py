"""The talk with a virtual machine while it runs one command: streams, signals, the end.

On one side this process's standard input, output and error; on the other the ports of the machine, each a socket whose
other end QEMU holds (`vm`, `guest.sh`). One loop passes bytes on as they come. Two things make it more than a pump:

- A port tells what was written, not that it was closed. So the guest ends each stream with a random word, and the loop
  holds back what may be its beginning (`Stream`).
- Ctrl-C is for the command first, as at a shell, so that a capture can end and print what it saw. A second one, or one
  while the kernel boots, is for the machine.

What the kernel says on its console is kept for the error message if there is one.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from bpfpath_nb.errors import LabError

_CHUNK = 1 << 16
_LAST_LINES = 12


class Conversation:
    """The talk between this process's streams and the ports of a machine, until the command has ended."""

    def __init__(
        self, process: subprocess.Popen[bytes], ports: Mapping[str, socket.socket], end: bytes, deadline: float
    ) -> None:
        self._process = process
        self._control, self._input = ports["control"], ports["input"]
        self._streams = {ports["output"]: Stream(1, end), ports["errors"]: Stream(2, end)}
        self._deadline = deadline
        self._console: collections.deque[bytes] = collections.deque(maxlen=200)
        self._told = b""
        self._ready = self._asked = False
        self._status: int | None = None
        self._pending = b""  # of standard input
        for port in ports.values():
            port.setblocking(False)

    def hold(self) -> int:
        """Pass everything on until the command has ended. Returns its exit status."""
        assert self._process.stderr is not None
        # poll(2) and not epoll: standard input may be a file, which epoll refuses.
        with selectors.PollSelector() as watch, self._signals():
            watch.register(self._process.stderr, selectors.EVENT_READ, self._hear_console)
            watch.register(self._control, selectors.EVENT_READ, self._hear_control)
            for port in self._streams:
                watch.register(port, selectors.EVENT_READ, self._hear_stream)
            while self._status is None or not all(stream.ended for stream in self._streams.values()):
                limit = None if self._ready else max(0.0, self._deadline - time.monotonic())
                ready = watch.select(limit)
                if not self._ready and time.monotonic() > self._deadline:
                    raise LabError(
                        "the kernel did not start the command in time; a machine that is busy with other things may "
                        f"need a second try. {self._last_words()}"
                    )
                for key, _ in ready:
                    key.data(watch, key.fileobj)
            return self._status

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def arrived(_number: int, _frame: FrameType | None) -> None:
            if self._asked or not self._ready:
                raise KeyboardInterrupt
            self._asked = True
            with contextlib.suppress(OSError):
                self._control.send(b"INT\n")

        with _handled({signal.SIGINT: arrived}):
            yield

    def _hear_console(self, watch: selectors.BaseSelector, pipe: object) -> None:
        data = os.read(self._process.stderr.fileno(), _CHUNK)  # type: ignore[union-attr]
        if not data:
            watch.unregister(pipe)  # type: ignore[arg-type]
            raise LabError(
                "the virtual machine ended before the command did; where its kernel had too little memory, --memory "
                f"gives it more. {self._last_words()}"
            )
        self._console.extend(data.splitlines(keepends=True))

    def _last_words(self) -> str:
        # Bytes of a console, so not ours: nothing but plain text gets to the user's terminal.
        text = b"".join(self._console).decode(errors="replace")
        lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e]", "", line).strip() for line in text.splitlines()]
        last = [line for line in lines if line][-_LAST_LINES:]
        return "Its console said last:\n  " + "\n  ".join(last) if last else "Its console said nothing."

    def _hear_control(self, watch: selectors.BaseSelector, port: socket.socket) -> None:
        data = self._receive(watch, port)
        self._told += data
        *lines, self._told = self._told.split(b"\n")
        for line in lines:
            word, _, value = line.partition(b" ")
            if word == b"ready":
                self._ready = True
                self._take_input(watch)
            elif word == b"exit":
                self._status = int(value)

    def _hear_stream(self, watch: selectors.BaseSelector, port: socket.socket) -> None:
        self._streams[port].feed(self._receive(watch, port))

    def _receive(self, watch: selectors.BaseSelector, port: socket.socket) -> bytes:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = port.recv(_CHUNK)
        if not data:
            watch.unregister(port)  # QEMU goes; the end of its console tells the rest
        return data

    def _take_input(self, watch: selectors.BaseSelector) -> None:
        try:
            watch.register(0, selectors.EVENT_READ, self._hear_input)
        except (OSError, ValueError):
            self._end_input()  # there is none

    def _end_input(self) -> None:
        """Let the guest read an end of file. Closing would not do: QEMU then drops what it has not yet passed on."""
        with contextlib.suppress(OSError):
            self._input.shutdown(socket.SHUT_WR)

    def _hear_input(self, watch: selectors.BaseSelector, _fileobj: object) -> None:
        try:
            self._pending = os.read(0, _CHUNK)
        except OSError:
            self._pending = b""
        watch.unregister(0)
        if self._pending:
            watch.register(self._input, selectors.EVENT_WRITE, self._pass_input)
        else:
            self._end_input()

    def _pass_input(self, watch: selectors.BaseSelector, port: socket.socket) -> None:
        try:
            self._pending = self._pending[port.send(self._pending) :]
        except ConnectionError:
            self._pending = b""  # nobody reads it any more
        if not self._pending:
            watch.unregister(port)
            watch.register(0, selectors.EVENT_READ, self._hear_input)


class Stream:
    """One of the command's output streams, on its way to a file descriptor. It ends with the random word `end`."""

    def __init__(self, descriptor: int, end: bytes) -> None:
        self._descriptor = descriptor
        self._end = end
        self._held = b""
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Pass on what arrived, but for what may be the beginning of the end."""
        self._held += data
        if self._held.endswith(self._end):
            self.ended = True
            ready, self._held = self._held[: -len(self._end)], b""
        else:
            kept = next((n for n in range(len(self._end) - 1, 0, -1) if self._held.endswith(self._end[:n])), 0)
            ready, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        while ready:
            ready = ready[os.write(self._descriptor, ready) :]


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process by an exception, so that what it opened is closed on the way."""

    def arrived(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handled({signal.SIGTERM: arrived, signal.SIGHUP: arrived}):
        yield


@contextlib.contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process with the block, and let no further Ctrl-C get between."""
    try:
        yield
    finally:
        with _handled({signal.SIGINT: signal.SIG_IGN}):
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


@contextlib.contextmanager
def _handled(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Signal handlers for a block; outside the main thread, where no signals arrive, none."""
    before = {}
    with contextlib.suppress(ValueError):
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
