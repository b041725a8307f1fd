"""A recording as a file, for others and for other programs.

What a `Recording` and a running `Capture` can be written as. Each writer is a module of `io`, loaded when asked for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, overload

from bpfpath_nb.io.path import file_path

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording


class Exports:
    """Everything that a recording can be written as, for whatever has one."""

    @property
    def recording(self) -> Recording:
        """What is recorded, as of now."""
        raise NotImplementedError

    def text(self, packet: int | None = None, limit: int = 50) -> str:
        """Packets' paths as plain text, for a terminal or a ticket.

        Parameters
        ----------
        packet : int, optional
            Only this one. By default all, in order.
        limit : int
            Most packets to write; a last line tells how many there are beyond.

        Raises
        ------
        OptionError
            There is no such packet.
        """
        from bpfpath_nb.io.text import recording_text

        return recording_text(self.recording, packet, limit)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recording to one Parquet file, which pandas, polars and DuckDB can read as well.

        An existing file is replaced, in one step: it is never half written.

        Returns
        -------
        Path
            Where it is.
        """
        from bpfpath_nb.io.parquet import save

        return save(self.recording.events, file_path(path))

    def report(self, path: str | os.PathLike[str], title: str | None = None) -> Path:
        """Write one page of HTML with all that the recording shows: summary, diagnosis, pictures, tables.

        The file needs nothing else: no script runs in it, nothing is fetched, and it prints well. An existing one is
        replaced, in one step.

        Parameters
        ----------
        path : path
            Where to write it.
        title : str, optional
            Its heading; by default the filter and the host.

        Returns
        -------
        Path
            Where it is.
        """
        from bpfpath_nb.html.report import write_report

        return write_report(self.recording, file_path(path), title)

    def to_pcapng(self, path: str | os.PathLike[str]) -> Path:
        """Write the packets to a pcapng file, for Wireshark and tshark.

        One block per packet, in the order of their numbers: its first bytes, when and where it was first seen, and as
        a comment its verdict and its path with all gaps. Namespaces and interfaces are the file's interfaces.

        Returns
        -------
        Path
            Where it is. An existing file is replaced in one step.
        """
        from bpfpath_nb.io.pcapng import save_pcapng

        return save_pcapng(self.recording, file_path(path))

    def to_perfetto(self, path: str | os.PathLike[str]) -> Path:
        """Write a Perfetto trace, to be opened in https://ui.perfetto.dev (which keeps it in the browser).

        A track per namespace and interface; in it a slice per packet's stay and, inside, one per function; arrows join
        the stays of a packet.

        Returns
        -------
        Path
            Where it is. An existing file is replaced in one step.

        Raises
        ------
        RequirementError
            The package `perfetto` is not installed.
        """
        from bpfpath_nb.io.perfetto import save_perfetto

        return save_perfetto(self.recording, file_path(path))

    @overload
    def to_json(self, path: str | os.PathLike[str]) -> Path: ...
    @overload
    def to_json(self, path: None = None) -> str: ...
    def to_json(self, path: str | os.PathLike[str] | None = None) -> Path | str:
        """The recording as JSON lines: one that tells of the recording, then one per packet with all its hops.

        Parameters
        ----------
        path : path, optional
            Where to write them. An existing file is replaced in one step.

        Returns
        -------
        Path or str
            Where the file is; without a path the lines themselves. `io.json_lines` describes the keys: columns of
            `packets` and, in the list `hops`, of `df`; times as ISO 8601 text, durations in ns, null where missing.
        """
        from bpfpath_nb.io.json_lines import json_text, save_json

        return json_text(self.recording) if path is None else save_json(self.recording, file_path(path))
