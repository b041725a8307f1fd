"""The start record: what a capture says of itself before its first event.

Events are numbers. What they mean on the kernel that was traced (which function, which drop reason, which clock) is
said once, at the head of the stream, as one JSON object (`schema.START_RECORD`). The same object heads a saved
recording. It comes from another process, another host or a file, so it is checked field by field here, and nowhere
else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Self

from bpfpath_nb.printable import printable
from bpfpath_nb.schema import LAYERS, PROBES, ROLES, SCHEMA_VERSION, TIME_LIMIT

_REASON_PREFIXES = ("SKB_DROP_REASON_", "SKB_")
_NOT_DROPS = ("CONSUMED", "NOT_DROPPED_YET")


class StartRecordError(ValueError):
    """A start record that is none; whoever reads it raises its own error with this one's text."""


@dataclass(frozen=True)
class Function:
    """A traced place in the kernel, what an event's `func` points at."""

    name: str
    layer: str
    probe: str
    target: str
    role: str = ""


@dataclass(frozen=True)
class Refused:
    """A probe that was asked for and that this kernel does not allow."""

    name: str
    why: str
    instead: str = ""


@dataclass(frozen=True)
class StartRecord:
    """A checked start record; `raw` is the JSON object as it came, with keys that this version does not know."""

    version: int
    tool: str
    release: str
    machine: str
    host: str
    filter: str
    ladder: str
    functions: tuple[Function, ...]
    refused: tuple[Refused, ...]
    reasons: dict[int, str]
    readers: frozenset[str]
    options: dict[str, Any]
    cost: dict[str, float]
    monotonic: int
    realtime: int
    error: dict[str, str] | None
    raw: dict[str, Any] = field(repr=False)

    @property
    def limits(self) -> str:
        """What there is not to be seen because the kernel has no kprobes, in one line; empty where it has."""
        return next((entry.why for entry in self.refused if entry.name == "kprobes"), "")

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read and check a start record.

        Raises
        ------
        StartRecordError
            The text is no start record, or one of a newer version.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StartRecordError(f"its start record is not JSON ({type(error).__name__})") from None
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: object) -> Self:
        """Check a start record that is already an object, as `from_json` does."""
        if not isinstance(raw, dict):
            raise StartRecordError("its start record is not an object")
        version = _integer(raw, "version", 1, 2**31)
        if version > SCHEMA_VERSION:
            raise StartRecordError(
                f"it has version {version} of the format and this bpfpath_nb reads up to {SCHEMA_VERSION}: "
                "upgrade with `pip install -U bpfpath_nb`"
            )
        error = raw.get("error")
        if error is not None:
            error = {"type": _text(error, "type"), "message": str(_object(error).get("message", ""))[:4000]}
        clock = _object(raw.get("clock", {} if error else None), "clock")
        return cls(
            version=version,
            tool=_text(raw, "tool"),
            release=_text(raw, "release"),
            machine=_text(raw, "machine"),
            host=_text(raw, "host"),
            filter=_text(raw, "filter", limit=4096),
            ladder=_ladder(raw.get("ladder", "")),
            functions=tuple(_function(entry) for entry in _list(raw, "functions", 65536)),
            refused=tuple(
                Refused(_text(entry, "name"), _text(entry, "why", limit=1024), _text(entry, "instead"))
                for entry in _list(raw, "refused", 65536)
            ),
            reasons=_reasons(raw.get("reasons", {})),
            options=_object(raw.get("options", {}), "options"),
            cost=_cost(raw.get("cost", {})),
            readers=frozenset(str(name) for name in _list(raw, "readers", 65536)),
            monotonic=_integer(clock, "monotonic", 0, TIME_LIMIT, None if error is None else 0),
            realtime=_integer(clock, "realtime", 0, TIME_LIMIT, None if error is None else 0),
            error=error,
            raw=raw,
        )

    def to_json(self) -> str:
        """The record as it came, as JSON."""
        return json.dumps(self.raw)

    def reason(self, number: int) -> str:
        """The drop reason's name on the kernel that was traced, without the prefix that all share."""
        return self.reasons.get(number, f"reason {number}")

    def is_drop_reason(self, number: int) -> bool:
        """Whether a packet freed with this reason was dropped.

        Since Linux 5.17 the function that frees a dropped packet is told why, and some callers use it with a reason
        that says "used as meant" (`enum skb_drop_reason`, include/net/dropreason-core.h). Older kernels have no
        reasons: there every packet freed that way is a drop.
        """
        return self.reasons.get(number) not in _NOT_DROPS


def _object(value: object, name: str = "entry") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StartRecordError(f"`{name}` in its start record is missing or not an object")
    return value


def _list(raw: dict[str, Any], name: str, limit: int) -> list[Any]:
    value = raw.get(name, [])
    if not isinstance(value, list) or len(value) > limit:
        raise StartRecordError(f"`{name}` in its start record is not a list of at most {limit}")
    return value


def _text(raw: object, name: str, limit: int = 256) -> str:
    value = _object(raw).get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise StartRecordError(f"`{name}` in its start record is not text")
    return printable(value, limit)


def _integer(raw: dict[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    value = raw.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise StartRecordError(f"`{name}` in its start record is missing or not a number in its range")
    return value


def _function(entry: object) -> Function:
    # The compiler's suffixes (.isra.0, .constprop.0, .cold) differ from build to build; the function is the same.
    name = _text(entry, "name").split(".", 1)[0]
    layer, probe, role = _text(entry, "layer"), _text(entry, "probe"), _text(entry, "role")
    if not name or layer not in LAYERS or probe not in PROBES or role not in ROLES:
        raise StartRecordError(
            f"a function in its start record is not known here (name {name!r}, layer {layer!r}, probe {probe!r}, "
            f"role {role!r})"
        )
    return Function(name, layer, probe, _text(entry, "target"), role)


def _reasons(raw: object) -> dict[int, str]:
    reasons = {}
    for number, name in _object(raw, "reasons").items():
        if not number.isascii() or not number.isdigit() or len(number) > 10 or not isinstance(name, str):
            raise StartRecordError("`reasons` in its start record does not map numbers to names")
        for prefix in _REASON_PREFIXES:
            name = name.removeprefix(prefix)  # noqa: PLW2901
        reasons[int(number)] = printable(name)
    return reasons


def _cost(raw: object) -> dict[str, float]:
    cost = _object(raw, "cost")
    if not all(type(value) is int and 0 <= value < 1 << 40 for value in cost.values()):
        raise StartRecordError("`cost` in its start record does not map names to times")
    return {str(name): float(value) for name, value in cost.items()}


def _ladder(raw: object) -> str:
    if isinstance(raw, dict):
        return ", ".join(f"{printable(str(key))} {printable(str(value))}" for key, value in raw.items())
    return printable(str(raw))
