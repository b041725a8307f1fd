"""What a capture is asked to be: the options, checked.

The request comes as JSON from the notebook's process, which has no privilege. So everything is checked here
again, whatever was checked there: types, ranges and lengths.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bpfpath_nb.errors import OptionError

MATCHES = ("entry", "tc", "every")


@dataclass(frozen=True)
class Request:
    """The options of `bpfpath_nb.Capture`, as they reach the tracer."""

    filter: str = ""
    functions: str | list[str] = "default"
    final: list[str] = field(default_factory=list)
    namespaces: list[str | int] | None = None
    interfaces: list[str] | None = None
    match: str = "entry"
    returns: bool = False
    duration: float | None = None
    packets: int | None = None
    max_events: int = 5_000_000
    sample: int = 1
    events_ring: int = 1 << 24
    facts_ring: int = 1 << 22

    @classmethod
    def of(cls, options: Any) -> Request:
        """A request from the notebook's JSON.

        Raises
        ------
        OptionError
            An option that does not exist, or whose value makes no sense.
        """
        if not isinstance(options, dict):
            raise OptionError("The request to the tracer is not an object with options.")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise OptionError(
                f"A capture has no option {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}."
            )
        request = cls(**options)
        request._check()
        return request

    def _check(self) -> None:
        _expect(isinstance(self.filter, str), "filter", "a packet filter as text, such as 'udp port 53'")
        _expect(
            isinstance(self.functions, str) or _are(self.functions, str),
            "functions",
            "'default', 'all', 'drops', a list of names, a regular expression or a file",
        )
        _expect(_are(self.final, str), "final", "a list of names")
        _expect(
            self.namespaces is None or (_are(self.namespaces, (str, int)) and bool(self.namespaces)),
            "namespaces",
            "a list of names, paths or inode numbers of network namespaces",
        )
        _expect(
            self.interfaces is None or (_are(self.interfaces, str) and bool(self.interfaces)),
            "interfaces",
            "a list of names of interfaces",
        )
        _expect(self.match in MATCHES, "match", f"one of {', '.join(MATCHES)}")
        _expect(isinstance(self.returns, bool), "returns", "True or False")
        _expect(
            self.duration is None or (_number(self.duration) and self.duration > 0), "duration", "seconds, more than 0"
        )
        _expect(self.packets is None or _whole(self.packets, 1, 2**31), "packets", "a number of packets from 1 on")
        _expect(_whole(self.max_events, 1, 2**40), "max_events", "a number of events from 1 on")
        _expect(_whole(self.sample, 1, 2**31), "sample", "a whole number from 1 on: one packet in so many is followed")
        for name in ("events_ring", "facts_ring"):
            size = getattr(self, name)
            _expect(
                _whole(size, 4096, 2**30) and size & (size - 1) == 0,
                name,
                "a power of two from 4096 to 2**30, in bytes",
            )

    def record(self) -> dict[str, Any]:
        """The options for the start record."""
        return asdict(self)


def _expect(good: bool, name: str, what: str) -> None:
    if not good:
        raise OptionError(f"The option `{name}` wants {what}.")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _are(values: object, types: type | tuple[type, ...]) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= 65536
        and all(isinstance(value, types) and not isinstance(value, bool) for value in values)
    )
