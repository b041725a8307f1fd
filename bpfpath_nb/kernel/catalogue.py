"""What is known of the network stack's functions beyond their names: `catalogue.toml`, read.

BTF says which functions take a packet; it does not say what they are for. That is in the catalogue, as data: the layer
a function belongs to, what it does in a few words, what it is called on other kernels, whether a packet can be met
there first or ends there. A function that is not listed still has a layer, by patterns over its name, so that every
function of every kernel can be drawn in some layer's colour.

Nothing here depends on the running kernel, and nothing here is needed to trace a function that the catalogue does not
know.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LAYERS = (
    "driver", "tc", "bridge", "ip", "netfilter", "route", "neigh", "qdisc", "xfrm", "transport", "socket", "skb",
)  # fmt: skip
"""All layers, in the order in which they are shown."""

QUEUES = ("backlog", "qdisc", "neighbour", "socket", "out-of-order")
"""Where a packet can lie and wait."""

PATH = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel function as the catalogue describes it; see `catalogue.toml` for the fields."""

    name: str
    layer: str
    does: str
    aliases: tuple[str, ...] = ()
    entry: str = ""
    final: bool = False
    freed: bool = False
    drop: bool = False
    socket: bool = False
    default: bool = True


@dataclass(frozen=True, slots=True)
class Tracepoint:
    """A tracepoint that passes a packet, or leads to one by `via`."""

    name: str
    layer: str
    does: str
    functions: tuple[str, ...] = ()
    via: str = ""
    role: str = ""
    entry: str = ""
    final: bool = False
    freed: bool = False
    drop: bool = False
    default: bool = True


@dataclass(frozen=True, slots=True)
class Queue:
    """A rule by which waiting in a queue is told from work; `catalogue.toml` has the fields."""

    queue: str
    out: frozenset[str]
    in_: frozenset[str] = frozenset()
    unless: frozenset[str] = frozenset()
    reads: bool = False
    moved: bool = False


class Catalogue:
    """The catalogue: `functions` and `tracepoints` by name, and what follows from them.

    `readers` are the functions that free a packet when the owner of its socket has read it, `queues` the rules that
    tell waiting from work.
    """

    def __init__(
        self,
        functions: Mapping[str, Function],
        tracepoints: Mapping[str, Tracepoint],
        layers: list[tuple[re.Pattern[str], str]],
        never: re.Pattern[str],
        control: re.Pattern[str],
        readers: frozenset[str],
        queues: tuple[Queue, ...],
    ) -> None:
        self.readers = readers
        self.queues = queues
        self.functions = dict(functions)
        self.tracepoints = dict(tracepoints)
        self._layers = layers
        self._never = never
        self._control = control
        self._known: dict[str, str] = {}
        # The name a function has here, by every other name it goes by; a listed name stays its own.
        self._listed: dict[str, str] = {}
        for function in self.functions.values():
            for alias in function.aliases:
                self._listed.setdefault(alias, function.name)
        self._listed.update((name, name) for name in self.functions)

    def find(self, name: str) -> Function | None:
        """The entry of a function, or the one it is an alias in; None where it is not listed."""
        listed = self._listed.get(name)
        return None if listed is None else self.functions[listed]

    def stand_ins(self, name: str) -> tuple[str, ...]:
        """What a function may be called on other kernels, the most alike first; empty where it is not listed."""
        entry = self.find(name)
        return () if entry is None else tuple(n for n in (entry.name, *entry.aliases) if n != name)

    def layer_of(self, name: str) -> str:
        """The layer of any kernel function or tracepoint, listed or not; one of `LAYERS`.

        Examples
        --------
        >>> catalogue = load()
        >>> catalogue.layer_of("ip_rcv"), catalogue.layer_of("nft_some_new_function")
        ('ip', 'netfilter')
        """
        layer = self._known.get(name)
        if layer is None:
            entry = self.find(name) or self.tracepoints.get(name)
            layer = entry.layer if entry else next((l_ for p, l_ in self._layers if p.match(name)), "skb")
            self._known[name] = layer
        return layer

    def describe(self, name: str) -> str:
        """What a function or tracepoint does, in a few words; empty where it is not listed."""
        entry = self.find(name) or self.tracepoints.get(name)
        return entry.does if entry else ""

    def never(self, name: str) -> bool:
        """Whether only a list of names may choose this function: code of tracing itself."""
        return self._never.match(name) is not None

    def control(self, name: str) -> bool:
        """Whether the buffer that a function takes holds a netlink message, not a packet."""
        return name not in self._listed and self._control.match(name) is not None


def load(path: Path = PATH) -> Catalogue:
    """Read a catalogue; by default the package's own, which is read once.

    Raises
    ------
    ValueError
        The file is not TOML, or an entry has a field or a layer that does not exist.
    """
    return _own() if path == PATH else _read(path)


@cache
def _own() -> Catalogue:
    return _read(PATH)


def _read(path: Path) -> Catalogue:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        functions = {n: Function(n, **_tuples(f)) for n, f in data["functions"].items()}
        tracepoints = {n: Tracepoint(n, **_tuples(t)) for n, t in data["tracepoints"].items()}
        layers = [(re.compile(entry["pattern"]), entry["layer"]) for entry in data["layers"]]
        never = re.compile("|".join(data["never"]["patterns"]))
        control = re.compile("|".join(data["control"]["patterns"]))
        readers = frozenset(data["readers"]["functions"])
        queues = tuple(_queue(entry) for entry in data["queues"])
    except (TypeError, KeyError, re.error) as error:
        raise ValueError(f"{path.name}: {error}") from error
    used = {f.layer for f in functions.values()} | {t.layer for t in tracepoints.values()} | {l_ for _, l_ in layers}
    if used - set(LAYERS):
        raise ValueError(f"{path.name}: no such layer: {', '.join(sorted(used - set(LAYERS)))}")
    return Catalogue(functions, tracepoints, layers, never, control, readers, queues)


def _queue(entry: Mapping[str, Any]) -> Queue:
    if set(entry) - {"queue", "in", "out", "unless", "reads", "moved"} or entry["queue"] not in QUEUES:
        raise ValueError(f"no such queue, or no such field: {entry}")
    names = {key: frozenset(entry.get(key, ())) for key in ("out", "in", "unless")}
    return Queue(
        entry["queue"], names["out"], names["in"], names["unless"], bool(entry.get("reads")), bool(entry.get("moved"))
    )


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
