"""Two recordings, or two parts of one, held against each other.

`compare` chooses the packets of both sides; `analysis.compare` makes the tables, `io.findings` the sentences.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb import schema
from bpfpath_nb.analysis.compare import Tables
from bpfpath_nb.analysis.sides import Selection
from bpfpath_nb.analysis.whole import whole
from bpfpath_nb.errors import NamespaceError, OptionError
from bpfpath_nb.io.findings import comparison_text, findings
from bpfpath_nb.io.text import no_such_packet
from bpfpath_nb.printable import printable

if TYPE_CHECKING:
    from bpfpath_nb.analysis.alignment import Alignment
    from bpfpath_nb.plot.comparison import ComparisonPlots
    from bpfpath_nb.recording import Recording, RecordingViews

Packets = int | Collection[int] | pd.DataFrame


class Comparison:
    """What differs between two sides, and how sure that is. Made by `compare`.

    In the tables `a` and `b` are the two sides in the order in which they were given. `change` says what can be
    claimed:

    {changes}

    A claim is a difference whose p is under 5 % after correction for everything else that the comparison looks at, so
    that a comparison of two sides that do not differ claims anything at all in less than one case of twenty. The
    tests, the intervals and the reasons for them are described in `analysis.significance` (shares) and
    `analysis.shifts` (durations). Packets count, not hops: several hops of one packet in one function are one
    duration, their sum.

    Attributes
    ----------
    names : (str, str)
        What the two sides are called.
    a, b : Recording
        What was recorded of each, as it was when they were compared.
    """

    def __init__(self, tables: Tables, recordings: tuple[Recording, Recording], names: tuple[str, str]) -> None:
        self.tables = tables
        self.a, self.b = recordings
        self.names = names

    @property
    def verdicts(self) -> pd.DataFrame:
        """What became of the packets, and how long that took: one row for each of `schema.VERDICTS`.

        The duration is the time from a packet's first hop to the one that decided its verdict; where a namespace is
        compared, the time that it spent there.

        {verdicts}
        """
        return self.tables.verdicts

    @property
    def paths(self) -> pd.DataFrame:
        """Paths and their shares of the packets, those with a claim first. Packets that may lack hops are left out.

        Index `path`.

        {paths}
        """
        return self.tables.paths

    @property
    def functions(self) -> pd.DataFrame:
        """Functions: which share of the packets passed them, and the time from there to the next function.

        Index `func`, those with a claim first, the largest shift on top.

        {functions}
        """
        return self.tables.functions

    @property
    def transitions(self) -> pd.DataFrame:
        """Steps from one function to the next: which share of the packets took them, and how long that took.

        Index `(from, to)`, those with a claim first, the largest shift on top.

        {transitions}
        """
        return self.tables.transitions

    @property
    def places(self) -> pd.DataFrame:
        """As `functions`, of each function in each namespace and interface: where it is that packets take longer.

        Index `(netns, dev, func)`, those with a claim first, the largest shift on top.

        {places}
        """
        return self.tables.places

    @property
    def drops(self) -> pd.DataFrame:
        """Where packets were dropped and why, and the share of all packets that this is.

        Index `(reason, func, netns)`, those with a claim first.

        {drops}
        """
        return self.tables.drops

    def align(self, path_a: str | None = None, path_b: str | None = None) -> Alignment | None:
        """Hold two paths against each other, function by function.

        Parameters
        ----------
        path_a, path_b : str, optional
            Ids, as in the index of `paths`. By default the two that tell most of the difference: the path that b has
            most more of, by what can be claimed, and the one of a that goes the same way for longest; where nothing can
            be claimed, the most frequent one that both have.

        Returns
        -------
        Alignment or None
            `frame` has one row per hop of either, `divergence` tells where they part. None where one side has no
            packet without losses.

            {alignment}

        Raises
        ------
        OptionError
            No packet of that side took that path.
        """
        return self.tables.align(path_a, path_b)

    @cached_property
    def findings(self) -> list[str]:
        """The summary's sentences."""
        return findings(self)

    @property
    def summary(self) -> str:
        """What differs, in a few sentences of plain English, for a ticket."""
        return "\n".join(self.findings)

    @property
    def plot(self) -> ComparisonPlots:
        """Pictures: `plot()` both of `plot.alignment()`, two paths side by side, and `plot.shifts()` of the medians."""
        from bpfpath_nb.plot.comparison import ComparisonPlots

        return ComparisonPlots(self)

    def __repr__(self) -> str:
        return comparison_text(self)

    def _repr_html_(self) -> str:
        from bpfpath_nb.html.comparison import comparison_html

        return comparison_html(self)


def compare(
    a: RecordingViews,
    b: RecordingViews | None = None,
    *,
    names: tuple[str, str] | None = None,
    netns: str | tuple[str, str] | None = None,
    packets: tuple[Packets, Packets] | None = None,
) -> Comparison:
    """Tell what differs between two captures, groups of packets, namespaces, or single packets.

    ``compare(before, after)`` compares two captures or recordings; ``compare(rec.where("tcp"), rec.where("udp"))`` two
    parts of one. ``compare(rec, netns=("blue", "green"))`` compares what packets do in two namespaces, and
    ``compare(rec, packets=(3, 17))`` two packets, or two groups of them.

    Parameters
    ----------
    a, b : Recording or Capture
        Of a capture what it has recorded so far. Without `b` both sides are parts of `a`.
    names : (str, str), optional
        What to call the two sides; by default before and after, or the namespaces, or the packets.
    netns : str or (str, str), optional
        Compare only hops in this namespace, or in this one of a and that one of b.
    packets : (packets, packets), optional
        Compare only these: of each side a packet's number, several, or a frame with the index `packet`, such as
        ``rec.packets.query("dport == 53")``.

    Returns
    -------
    Comparison

    Raises
    ------
    OptionError
        A side has no packets, or a packet is not there.
    NamespaceError
        No packet was seen in that namespace.
    """
    for side in (a, a if b is None else b):
        if not hasattr(side, "recording"):
            raise OptionError(
                f"compare() takes recordings or captures, not {type(side).__name__}; packets of a frame are chosen by "
                f"compare(recording, packets=(frame, other))."
            )
    if b is None and netns is None and packets is None:
        raise OptionError(
            "compare() needs two sides: compare(before, after), or two parts of one recording, as in "
            'compare(recording, netns=("blue", "green")) or compare(recording, packets=(3, 17)).'
        )
    recordings = a.recording, (a if b is None else b).recording
    netns_pair = _pair(netns, "netns") if netns is not None and not isinstance(netns, str) else (netns, netns)
    for name in netns_pair:
        if netns is not None and not isinstance(name, str):
            raise OptionError(f"netns= takes names of namespaces, and {name!r} is none; `namespaces` lists them.")
    packets_pair = (None, None) if packets is None else _pair(packets, "packets")
    called = _names(names, netns_pair, packets_pair)
    chosen = [
        _select(recording, name, of, inside)
        for recording, name, of, inside in zip(recordings, called, packets_pair, netns_pair, strict=True)
    ]
    return Comparison(Tables(*chosen), recordings, called)


def _pair(values: Any, option: str) -> tuple[Any, Any]:
    if isinstance(values, (str, pd.DataFrame)) or not isinstance(values, Sequence) or len(values) != 2:
        raise OptionError(f"{option}= takes two values, the one of a and the one of b.")
    return values[0], values[1]


def _names(names: Any, netns: tuple[Any, Any], packets: tuple[Any, Any]) -> tuple[str, str]:
    if names is not None:
        first, second = (printable(str(name), 40) for name in _pair(names, "names"))
        if first == second:
            raise OptionError(f"Both sides would be called {first!r}; give them names that differ.")
        return first, second
    if netns[0] != netns[1]:
        return printable(str(netns[0]), 40), printable(str(netns[1]), 40)
    if all(isinstance(one, (int, np.integer)) for one in packets) and packets[0] != packets[1]:
        return f"packet {packets[0]}", f"packet {packets[1]}"
    return "before", "after"


def _select(recording: Recording, name: str, packets: Packets | None, netns: str | None) -> Selection:
    events = recording.events
    count = len(events.first)
    if not count:
        raise OptionError(
            f"There is nothing to compare: {name!r} has no packets. If traffic was sent that the filter "
            f"{recording.start.filter or 'for every packet'!r} matches, that it never came may be the answer; else "
            f"send some and capture again."
        )
    chosen = np.ones(count, bool) if packets is None else _chosen(recording, packets)
    if not chosen.any():
        raise OptionError(f"There is nothing to compare: no packet was chosen for {name!r}.")
    if netns is not None:
        there = whole(events).netns
        if netns not in there.names:
            raise NamespaceError(_no_such_namespace(netns, there.names))
        visited = np.zeros(count, bool)
        visited[events.packet_of[there.codes == there.names.index(netns)]] = True
        chosen &= visited
        if not chosen.any():
            raise NamespaceError(f"None of the packets that were chosen for {name!r} was seen in namespace {netns!r}.")
    return Selection(events, chosen, netns)


def _chosen(recording: Recording, packets: Packets) -> npt.NDArray[np.bool_]:
    if isinstance(packets, pd.DataFrame):
        if "packet" not in packets.index.names:
            raise OptionError("A frame that chooses packets has the index `packet`, as `packets` and `df` have it.")
        packets = packets.index.get_level_values("packet").unique().tolist()
    listed = list(packets) if isinstance(packets, Iterable) else [packets]
    try:
        wanted = np.asarray(listed)
    except ValueError:  # lists of unlike lengths
        wanted = np.empty((1, 1))
    if wanted.ndim != 1 or (len(wanted) and not np.issubdtype(wanted.dtype, np.integer)):
        raise OptionError("Packets are chosen by their numbers, or by a frame with the index `packet`.")
    known = recording.events.packets
    lacking = np.setdiff1d(wanted, known)
    if len(lacking):
        raise OptionError(no_such_packet(int(lacking[0]), recording.packets))
    return np.isin(known, wanted)


def _no_such_namespace(netns: str, known: Sequence[str]) -> str:
    near = get_close_matches(netns, known, 3, 0.5) or list(known[:5])
    return f"No packet was seen in a namespace {printable(netns)!r}. Near to that: {', '.join(near)}."


def _document() -> None:
    """Put the columns of `schema` into the docstrings, so that they cannot differ."""
    changes = "\n".join(f"    {name:8} {meaning}" for name, meaning in schema.CHANGES.items())
    Comparison.__doc__ = (Comparison.__doc__ or "").replace("    {changes}", changes)
    tables = {
        "verdicts": schema.COMPARED_VERDICTS, "paths": schema.COMPARED_PATHS, "functions": schema.COMPARED_FUNCTIONS,
        "transitions": schema.COMPARED_TRANSITIONS, "places": schema.COMPARED_PLACES, "drops": schema.COMPARED_DROPS,
    }  # fmt: skip
    for name, columns in tables.items():
        view = Comparison.__dict__[name]
        view.__doc__ = (view.__doc__ or "").replace(f"        {{{name}}}", schema.document(columns, indent=8))
    align = Comparison.align
    align.__doc__ = (align.__doc__ or "").replace("            {alignment}", schema.document(schema.ALIGNMENT, 12))


_document()
