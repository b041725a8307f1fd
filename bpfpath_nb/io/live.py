"""A recording that is on the disk while it grows.

The tracer's stream is an Arrow IPC stream, a message after the other, and can be read as far as it goes. So a copy of
it, written as it comes, is a recording at every moment: whatever kills the notebook, what had arrived by then is in the
file (in the kernel's hands, that is; a machine that loses its power may lose the last seconds).

What is read from the tracer at once is a frame: its length, a checksum over both, and the bytes. A frame that is cut
short is where the writing ended, and what came before is good. A frame whose checksum is wrong is damage, and nothing
of the file is used: Arrow's streams have no checksums, and a number that is a little wrong would not be noticed.

While the capture runs this file has the name that the recording is to have. When it is stopped, the Parquet file takes
its place in one step: smaller, and readable by others. `Recording.load` tells the two apart by their first bytes.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import BinaryIO, Final

from bpfpath_nb.analysis.events import Collector, Events
from bpfpath_nb.errors import BpfpathError, RecordingError, TracerError
from bpfpath_nb.schema import BROKEN_OFF
from bpfpath_nb.stream import Reader

MAGIC: Final = b"BPFPATH1"
"""The first bytes of such a file."""
_FRAME: Final = struct.Struct("<II")
_FRAME_LIMIT: Final = 1 << 22


class LiveFile:
    """A file that a stream is copied to. It is hidden until `show`; what was at the path until then stays.

    Attributes
    ----------
    path : Path
        Where the recording is to be.
    error : OSError or None
        Why the copying ended early. A full disk does not end a capture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self.error: OSError | None = None
        self._handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        self._hidden: Path | None = Path(name)
        self._append(MAGIC)

    def write(self, data: bytes) -> None:
        """Append what came, as a frame."""
        for at in range(0, len(data), _FRAME_LIMIT):
            part = data[at : at + _FRAME_LIMIT]
            self._append(_FRAME.pack(len(part), _checksum(part)) + part)

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[os.write(self._handle, rest) :]
        except OSError as error:
            self.error = error

    def show(self) -> None:
        """Give it its name."""
        if self._hidden is not None:
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(self._handle, 0o666 & ~mask)
            self._hidden.replace(self.path)
            self._hidden = None

    def close(self) -> None:
        """No more comes; a file that was never shown is removed."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
        if self._hidden is not None:
            with contextlib.suppress(FileNotFoundError):
                self._hidden.unlink()
            self._hidden = None


class Copied:
    """A stream's source whose bytes go to a file as well."""

    def __init__(self, descriptor: int, file: LiveFile) -> None:
        self._descriptor = descriptor
        self._file = file

    def read(self, size: int, /) -> bytes:
        """As a raw file."""
        data = os.read(self._descriptor, size)
        self._file.write(data)
        return data


class _Frames:
    """The stream that such a file holds."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """As a raw file: some of what there is, nothing at the end or where the writing ended."""
        if not self._rest:
            head = self._file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                return b""
            length, checksum = _FRAME.unpack(head)
            if not 0 < length <= _FRAME_LIMIT:
                raise OSError("a frame of no length that is written")
            self._rest = self._file.read(length)
            if len(self._rest) < length:
                self._rest = b""
                return b""
            if _checksum(self._rest) != checksum:
                raise OSError("a frame that is not what was written")
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _checksum(data: bytes) -> int:
    return zlib.crc32(data, len(data))


def load_live(path: Path) -> Events:
    """Read the file of a capture that was not stopped: all of it that was written.

    Raises
    ------
    RecordingError
        It is damaged, or holds no capture yet.
    OSError
        There is no such file, or it may not be read.
    """
    path = path.expanduser()
    with path.open("rb") as file:
        file.read(len(MAGIC))
        try:
            reader = Reader(_Frames(file))
            collector = Collector(reader.start)
            try:
                for batch in reader:
                    collector.start = reader.start
                    collector.add(batch)
            except TracerError:
                if not reader.broke_off:
                    raise
                collector.end = {"reason": BROKEN_OFF}
            return collector.events()
        except BpfpathError as error:
            raise RecordingError(
                f"{path} is the file of a capture that was not stopped, and it is damaged or has nothing in it yet; "
                "nothing of it was used. Capture again."
            ) from error
