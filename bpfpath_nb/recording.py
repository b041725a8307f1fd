"""A recording: what was captured, as frames. Immutable, and the same whether it was loaded or is still growing.

`Recording` holds one ordered set of numeric columns (`analysis.events.Events`); each frame is made from it on first
use and kept. A live `Capture` is not a recording, it has one: its present picture. What both offer is written once,
in `RecordingViews`, in terms of the one property `recording`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import bpfpath_nb.analysis.accessor  # noqa: F401 - frames get their `bpfpath` with the first recording
from bpfpath_nb.analysis.drops import drops_frame
from bpfpath_nb.analysis.events import Collector, Events
from bpfpath_nb.analysis.flows import Flows, flows
from bpfpath_nb.analysis.functions import functions_frame
from bpfpath_nb.analysis.hop_columns import EventColumns
from bpfpath_nb.analysis.hops import hops_frame
from bpfpath_nb.analysis.latency import latency_frame
from bpfpath_nb.analysis.losses import quality
from bpfpath_nb.analysis.namespaces import namespaces_frame
from bpfpath_nb.analysis.packets import Verdicts, packets_frame
from bpfpath_nb.analysis.paths import Paths, find_paths, paths_frame
from bpfpath_nb.analysis.transitions import transitions_frame
from bpfpath_nb.analysis.whole import whole
from bpfpath_nb.docstrings import document_frames
from bpfpath_nb.errors import OptionError
from bpfpath_nb.exports import Exports
from bpfpath_nb.io.path import file_path
from bpfpath_nb.stream import Batch, Reader, Source

if TYPE_CHECKING:
    import pandas as pd

    from bpfpath_nb.diagnosis import Diagnosis
    from bpfpath_nb.filter import Filter
    from bpfpath_nb.partitions import RecordingInParts
    from bpfpath_nb.plot.plots import Plots
    from bpfpath_nb.start import StartRecord
    from bpfpath_nb.widgets.comparer import Comparer
    from bpfpath_nb.widgets.explorer import Explorer


class RecordingViews(Exports):
    """Everything that a recording shows, for whatever has one.

    A subclass provides `recording`; a `Capture` returns the picture of the moment, a `Recording` itself.
    """

    @property
    def recording(self) -> Recording:
        """What is recorded, as of now."""
        raise NotImplementedError

    @property
    def df(self) -> pd.DataFrame:
        """One row per function that a packet passed, with how long it took.

        Index `(packet, hop)`, ordered by packet and time. The frame is the recording's own: `copy()` it before you
        change it.

        {df}
        """
        return self.recording._df

    @property
    def packets(self) -> pd.DataFrame:
        """One row per packet: when, along which path, and what became of it (`analysis.packets` has the rules).

        Index `packet`.

        {packets}
        """
        return self.recording._packets

    @property
    def paths(self) -> pd.DataFrame:
        """One row per way that packets took through the kernel, the most frequent first.

        Index `path`, by which the paths of two recordings can be joined.

        {paths}
        """
        return self.recording._paths_frame

    @property
    def functions(self) -> pd.DataFrame:
        """One row per function that packets passed, that with most time spent first.

        Index `func`. Quantiles are exact.

        {functions}
        """
        return self.recording._functions

    @property
    def transitions(self) -> pd.DataFrame:
        """One row per step from one function to the next, that with most time spent first.

        Index `(from, to)`. What is taken for waiting is in `analysis.waits`. That a TCP segment waited out of order is
        told by the data in front of it that came later: in a selection without those it waited in its socket.

        {transitions}
        """
        return self.recording._transitions

    @property
    def drops(self) -> pd.DataFrame:
        """One row for each time that the kernel dropped a packet, or a copy of one, by time.

        {drops}
        """
        return self.recording._drops

    @property
    def namespaces(self) -> pd.DataFrame:
        """One row per network namespace that packets were seen in, that with most packets first.

        Index `netns`.

        {namespaces}
        """
        return self.recording._namespaces

    def latency(self, by: str | Sequence[str] = ("netns", "func")) -> pd.DataFrame:
        """The quantiles of `functions`, by any columns.

        Parameters
        ----------
        by : str or sequence of str
            Columns of `df`, `packet`, or columns of `packets`, such as `["netns", "func"]` or `["verdict", "layer"]`.
            A hop without a value there counts in no group.

        Returns
        -------
        DataFrame
            Index as `by`, the group in which most time was spent first.

        {latency}

        Raises
        ------
        OptionError
            There is no such column.
        """
        return latency_frame(self.recording.df, by, self.recording.packets)

    @property
    def quality(self) -> pd.Series[Any]:
        """How far the recording can be trusted: what was lost, refused, and left unfinished.

        {quality}
        """
        return self.recording._quality

    @property
    def plot(self) -> Plots:
        """Pictures: `plot.timeline(3)`, `plot.latency()` and more. Each returns matplotlib's Axes."""
        from bpfpath_nb.plot.plots import Plots

        return Plots(self)

    def where(self, expression: str | Filter) -> Recording:
        """Only the packets that a filter takes, as a recording of its own.

        Parameters
        ----------
        expression : str or Filter
            In the language of pcap-filter(7), for instance `"host 10.0.0.2 and tcp[tcpflags] & tcp-syn != 0"`. It is
            asked of the headers that were stored (the first 128 bytes), as they were whenever they changed on the
            packet's way: a packet is taken if it matched at any of its hops. One whose headers are not known is not.

        Raises
        ------
        FilterError
            The expression has a mistake, or asks for what headers do not tell (`inbound`, `ifindex`).
        """
        from bpfpath_nb.analysis.selection import where

        recording = self.recording
        return Recording(where(recording.events, expression))

    def query(self, expression: str) -> Recording:
        """Only the packets for which an expression over the columns of `packets` is true, as a recording of its own.

        Parameters
        ----------
        expression : str
            As `DataFrame.query` takes it, for instance `"verdict == 'dropped' and netns == 'web'"`; `@name` is a
            variable of yours. `netns` is where the packet was first seen; of all that it visited,
            `"namespaces.str.contains('web')"`. It is code of yours, and may call methods of the columns: take none from
            somebody whose code you would not run.

        Raises
        ------
        OptionError
            There is no such column, or the expression has a mistake.
        """
        from bpfpath_nb.analysis.selection import query

        recording = self.recording
        return Recording(query(recording.events, recording.packets, expression, level=1))

    def diagnose(self) -> Diagnosis:
        """What is wrong: drops, waits, loops, duplicates and more, each explained, with what to check next.

        Returns
        -------
        Diagnosis
            Its `findings` are a frame; printed, or shown by a notebook, it is a page to read. The commands in it are
            for you to run: nothing is executed.
        """
        return self.recording._diagnosis

    def explore(self) -> Explorer:
        """Click through packets, paths, functions and drops; see `widgets.explore`. Of a running capture, as of now."""
        from bpfpath_nb.widgets import explore

        return explore(self)

    def compare_namespaces(self) -> Comparer:
        """Choose two namespaces, and see what differs between them; see `widgets.compare_widget`."""
        from bpfpath_nb.widgets import compare_widget

        return compare_widget(self)

    def redact(self, key: str | bytes | None = None) -> Recording:
        """The recording with other names and addresses, to be shown to others.

        Addresses of IP and Ethernet, names of namespaces, interfaces and processes, and the host's are replaced, each
        by the same everywhere. Two addresses of one subnet are of one subnet afterwards; loopback, private, link-local
        and group addresses stay in their class. All bytes behind the headers are left out, so are options of the
        headers and whatever the filter names. Ports, times and paths stay (`analysis.redact` lists it all).

        Parameters
        ----------
        key : str or bytes, optional
            A secret. Recordings that are redacted with the same one have the same replacements, so that they can be
            compared. Without it, a new one that nobody knows.

        Returns
        -------
        Recording
        """
        from bpfpath_nb.analysis.redact import redact

        return Recording(redact(self.recording.events, secrets.token_bytes(32) if key is None else _key_bytes(key)))


class Recording(RecordingViews):
    """What a capture recorded.

    Made by `Capture.recording` or `Recording.load`.

    Attributes
    ----------
    events : analysis.events.Events
        The columns that every frame is made from.
    start : StartRecord
        The kernel, the filter, the probes: what the capture said of itself.
    """

    def __init__(self, events: Events) -> None:
        self.events = events

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a recording that `save` wrote. Needs neither root nor bcc, on any system.

        Also the file of a `Capture(save=...)` whose process was killed: what had arrived by then, with "broken off" as
        its end in `quality`.

        Raises
        ------
        RecordingError
            The file is no recording, is damaged or cut short, or comes from a newer version.
        OSError
            There is no such file, or it may not be read.
        """
        from bpfpath_nb.io.live import MAGIC, load_live
        from bpfpath_nb.io.parquet import load

        found = file_path(path)
        with found.open("rb") as file:
            is_live = file.read(len(MAGIC)) == MAGIC
        return cls(load_live(found) if is_live else load(found))

    @classmethod
    def from_pwru(cls, source: str | os.PathLike[str]) -> Self:
        """Read what pwru printed, as a table or as JSON: a file, or the text itself.

        It must have been run with `--timestamp current`; namespaces, interfaces and flows are there if it was run with
        `--output-meta` and `--output-tuple`, and who dropped a packet with `--output-caller`. pwru knows no time of
        day: times count from when the machine was started, as if that had been the first of January 1970.

        Raises
        ------
        RecordingError
            It is no output of pwru's, or has no times.
        OSError
            There is no such file, or it may not be read.
        """
        from bpfpath_nb.io.pwru import read_pwru

        return cls(read_pwru(source if isinstance(source, str) else file_path(source)))

    @classmethod
    def from_retis(cls, path: str | os.PathLike[str]) -> Self:
        """Read events that `retis collect` or `retis sort` wrote; needs the package `retis`.

        Raises
        ------
        RecordingError
            It is no file of retis' events, or holds none of a packet.
        RequirementError
            The package `retis` is not installed.
        OSError
            There is no such file, or it may not be read.
        """
        from bpfpath_nb.io.retis import read_retis

        return cls(read_retis(file_path(path)))

    @classmethod
    def from_stream(cls, source: Source | int) -> Self:
        """Read a tracer's whole stream (see `stream.Reader` for the errors)."""
        reader = Reader(source)
        return cls.from_batches(reader.start, reader)

    @classmethod
    def from_batches(cls, start: StartRecord, batches: Iterable[Batch]) -> Self:
        """Put a stream's batches together."""
        collector = Collector(start)
        for batch in batches:
            collector.add(batch)
        return cls(collector.events())

    @property
    def recording(self) -> Recording:
        """The recording itself."""
        return self

    @property
    def start(self) -> StartRecord:
        """What the capture said of itself when it began."""
        return self.events.start

    def to_dask(self) -> RecordingInParts:
        """The recording as Dask DataFrames, read from its file in parts: for one that is larger than memory.

        `df`, `packets`, `paths` and `functions` of what it returns are as here, once `.compute()` is called, on this
        machine or on a Dask cluster whose workers find the file under the same path. A packet is never split.

        Raises
        ------
        OptionError
            The recording is in no file yet, or it is only a selection of one: `save` it and `load` that.
        RequirementError
            Dask is not installed.
        """
        from bpfpath_nb.partitions import RecordingInParts

        path: Path | None = getattr(self.events, "path", None)
        if path is None:
            raise OptionError(
                "This recording is in no file, and Dask reads it in parts from there. Save it, and load that: "
                "`Recording.load(recording.save(path)).to_dask()`."
            )
        return RecordingInParts(path)

    def __len__(self) -> int:
        """How many hops there are."""
        return len(self.events)

    @cached_property
    def _flows(self) -> Flows:
        return flows(self.events.facts)

    @cached_property
    def _df(self) -> pd.DataFrame:
        return hops_frame(self.events, self._flows)

    @cached_property
    def _columns(self) -> EventColumns:
        return EventColumns(self.events)

    @cached_property
    def _paths(self) -> Paths:
        return find_paths(self._columns.func, self.events.first, self.events.hop)

    @property
    def _verdicts(self) -> Verdicts:
        return whole(self.events).verdicts

    @cached_property
    def _packets(self) -> pd.DataFrame:
        return packets_frame(self.events, self._flows, self._paths, self._verdicts)

    @cached_property
    def _paths_frame(self) -> pd.DataFrame:
        return paths_frame(self._columns, self._paths, self._verdicts[0])

    @cached_property
    def _functions(self) -> pd.DataFrame:
        return functions_frame(self._columns)

    @cached_property
    def _transitions(self) -> pd.DataFrame:
        return transitions_frame(self._columns)

    @cached_property
    def _drops(self) -> pd.DataFrame:
        return drops_frame(self.events, self._flows)

    @cached_property
    def _diagnosis(self) -> Diagnosis:
        from bpfpath_nb.analysis.diagnose import diagnose
        from bpfpath_nb.diagnosis import Diagnosis

        return Diagnosis(self, *diagnose(self.events, self._flows, self._verdicts[0]))

    @cached_property
    def _namespaces(self) -> pd.DataFrame:
        return namespaces_frame(self.events, self._columns, self._verdicts)

    @cached_property
    def _quality(self) -> pd.Series[Any]:
        return quality(self.events, self._packets)

    def __repr__(self) -> str:
        from bpfpath_nb.io.summary import summary_text

        return summary_text(self)

    def _repr_html_(self) -> str:
        from bpfpath_nb.html.summary import summary_html

        return summary_html(self)


def _key_bytes(key: object) -> bytes:
    if not isinstance(key, (str, bytes)) or not key:
        raise OptionError("The key is a text or bytes that only you know, and not empty.")
    return key.encode() if isinstance(key, str) else key


document_frames(RecordingViews)
