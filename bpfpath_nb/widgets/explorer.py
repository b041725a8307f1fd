"""`cap.explore()`: from many packets to one, and from one to those like it.

On top are four lists: packets, paths, functions and drops. Choosing a row of any leads to a packet: itself, the first
that took the path, the one that spent longest in the function, the one that was dropped. Below stands that packet: its
way as a timeline and as a table, and its neighbours, the packets that took the same path.
"""

from __future__ import annotations

import ast
from typing import Any, Final

import ipywidgets
import numpy as np
import numpy.typing as npt
import pandas as pd
import traitlets

from bpfpath_nb.analysis.selection import holding, matching
from bpfpath_nb.errors import OptionError
from bpfpath_nb.html.frame import frame_html
from bpfpath_nb.html.table import details, facts, warning
from bpfpath_nb.io.summary import counted
from bpfpath_nb.io.text import loss_lines, no_such_packet, outcome
from bpfpath_nb.plot.image import png
from bpfpath_nb.recording import Recording, RecordingViews
from bpfpath_nb.widgets.panel import Panel, Snapshot, image
from bpfpath_nb.widgets.rows import Rows

_MOST_HOPS: Final = 300
_DPI: Final = 80
_HOPS = ["since", "gap", "func", "layer", "netns", "dev", "cpu", "comm", "len", "reason"]


class Explorer(Panel):
    """A recording to click through. Made by `explore`.

    Attributes
    ----------
    packet : int
        The packet that is shown; setting it shows another one. 0 where there is none.
    """

    packet = traitlets.Int(0)

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        packets = recording.packets
        self._first = packets.index[0] if len(packets) else 0
        self._rows = {
            "packets": Rows(
                packets, ["flow", "hops", "total", "verdict", "reason", "where", "namespaces"],
                lambda row: self._go(packets.index[row]), self._narrow,
                "udp port 53, or verdict == 'dropped'",
            ),
            "paths": Rows(
                recording.paths, ["packets", "share", "hops", "verdict", "median", "p99", "functions"],
                self._go_to_path, hint="packets > 10",
            ),
            "functions": Rows(
                recording.functions, ["layer", "hits", "packets", "gap_p50", "gap_p99", "gap_max", "gap_total"],
                self._go_to_function, hint="layer == 'qdisc'",
            ),
            "drops": Rows(
                recording.drops, ["time", "packet", "reason", "func", "netns", "dev", "flow"],
                lambda row: self._go(recording.drops["packet"].iloc[row]), hint="reason == 'NO_SOCKET'",
            ),
        }  # fmt: skip
        self._lists = ipywidgets.Tab(list(self._rows.values()), titles=list(self._rows))
        self._title, self._hops = ipywidgets.HTML(), ipywidgets.HTML()
        self._picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self._path: Any = None
        self._neighbours = Rows(
            packets.head(0), ["first", "flow", "total", "verdict"],
            lambda row: self._go(self._neighbours.frame.index[row]), hint="total > '1ms'", page=8,
        )  # fmt: skip
        self._parts = ipywidgets.Tab(
            [self._picture, self._hops, self._neighbours], titles=["timeline", "hops", "same path"]
        )
        super().__init__([ipywidgets.HTML(self._head()), self._lists, self._title, self._parts])
        self.observe(lambda _: self._show(), "packet")
        self.packet = int(self._first)

    @traitlets.validate("packet")
    def _known(self, proposal: Any) -> int:
        packet, packets = int(proposal["value"]), self.recording.packets
        if packet not in packets.index and (packet != 0 or len(packets)):
            raise OptionError(no_such_packet(packet, packets))
        return packet

    def filter(self, expression: str) -> None:
        """Narrow the list of packets down, as if it had been typed: a pcap expression, or a query over the columns."""
        self._rows["packets"].filter(expression)

    def _frozen(self) -> Snapshot:
        """The present list and the present packet."""
        name = list(self._rows)[self._lists.selected_index or 0]
        parts = [self._head(), f"<p><b>{name}</b></p>", self._rows[name].html()]
        text = f"explore(): {name} of {self.recording!r}"
        if self.packet:
            parts += [self._title.value, image(self._picture.value), details("hops", self._hops.value)]
            parts.append(details("packets on the same path", self._neighbours.html()))
            text = f"{text}\n\n{self.recording.text(self.packet)}"
        return Snapshot("<div>\n" + "\n".join(parts) + "\n</div>", text)

    def _head(self) -> str:
        start, packets = self.recording.start, self.recording.packets
        told = f"{len(packets)} in {len(self.recording)} hops" + (f": {counted(packets)}" if len(packets) else "")
        return facts([("filter", start.filter or "every packet"), ("packets", told)]) + warning(
            loss_lines(self.recording)
        )

    def _narrow(self, expression: str) -> npt.NDArray[np.bool_]:
        packets = self.recording.packets
        if asks_for_columns(expression, packets):
            return holding(packets, expression)
        return matching(self.recording.events, expression)

    def _go(self, packet: Any) -> None:
        self.packet = int(packet)

    def _go_to_path(self, row: int) -> None:
        packets = self.recording.packets
        self._go(packets.index[_of_path(packets, self.recording.paths.index[row])][0])
        self._parts.selected_index = 2

    def _go_to_function(self, row: int) -> None:
        """To the packet that spent longest in and after the function."""
        events, func = self.recording.events, self.recording.df["func"].cat
        code = list(func.categories).index(self.recording.functions.index[row])
        at = np.flatnonzero(func.codes.to_numpy() == code)
        gaps = self.recording.df["gap"].to_numpy().astype("int64")[at]  # NaT is the smallest
        self._go(events.packets[events.packet_of[at[np.argmax(gaps)]]])

    def _show(self) -> None:
        recording = self.recording
        place = int(recording.packets.index.get_indexer(pd.Index([self.packet]))[0])
        packet = recording.packets.iloc[place]
        first, count = int(recording.events.first[place]), int(recording.events.counts[place])
        peers = recording.packets[_of_path(recording.packets, packet["path"])]
        slower = (
            f"; this one took longer than {(peers['total'] < packet['total']).mean():.0%} of them"
            if len(peers) > 1
            else ""
        )
        flow = packet["flow"] if pd.notna(packet["flow"]) else "headers not known"
        lacking = "" if packet["complete"] else " (may lack hops)"
        self._title.value = facts(
            [
                (f"packet {self.packet}", f"{flow}, {outcome(packet)}{lacking}"),
                ("path", f"{packet['path']}, which {len(peers)} of {len(recording.packets)} packets took{slower}"),
            ]
        )  # fmt: skip
        hops = recording.df.iloc[first : first + min(count, _MOST_HOPS)].droplevel("packet")
        self._hops.value = frame_html(hops[_HOPS], _MOST_HOPS)
        if packet["path"] != self._path:
            self._path = packet["path"]
            self._neighbours.show(peers)
        # The text is there at once; the picture takes most of the time.
        self._picture.value = png(recording.plot.timeline(self.packet), _DPI)


def asks_for_columns(expression: str, frame: pd.DataFrame) -> bool:
    """Whether an expression is a query over columns of the frame, and no packet filter.

    It is when it reads as Python and all names in it are columns. So `hops > 50` is a query, and no packet filter that
    has the resolver look for a host named hops; `udp` and `ip[0] & 0xf > 5` are packet filters.
    """
    try:
        tree = ast.parse(expression.replace("@", ""), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return bool(names) and names <= {*map(str, frame.columns), *map(str, frame.index.names)}


def _of_path(packets: pd.DataFrame, path: Any) -> npt.NDArray[np.bool_]:
    codes = packets["path"].cat
    return np.asarray(codes.codes.to_numpy() == codes.categories.get_loc(path))


def explore(recording: RecordingViews) -> Explorer:
    """Click through a recording: packets, paths, functions and drops, and one packet's way.

    Parameters
    ----------
    recording : Recording or Capture
        Of a running capture what it has by now; call it again for more.

    Returns
    -------
    Explorer
        A widget. Its attribute `packet` is the packet that is shown; `snapshot()` freezes the view into static HTML.
    """
    return Explorer(recording.recording)
