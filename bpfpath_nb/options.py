"""A capture's options in words, as on a command line: what `bpfpath FILTER` and `%bpfpath FILTER` have in common.

One table for both, so that a command that was tried on a shell means the same in a notebook. Here words become
arguments of `Capture`; whether these make sense is for `Capture` and the tracer to say.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

_NAMES = re.compile(r"[\w.]+(,[\w.]+)+")
"""Several plain names. Anything else with a comma in it is a regular expression or a path."""


def add_capture_options(parser: argparse.ArgumentParser) -> None:
    """Add the filter and every option of `Capture`."""
    add = parser.add_argument
    add("filter", nargs="*", metavar="FILTER", help="which packets: pcap-filter(7); without one, all")
    add("-t", "-d", "--duration", type=float, metavar="SECONDS", help="end after so long")
    add("-c", "--packets", type=int, metavar="N", help="end after so many packets")
    add(
        "-f", "--functions", action="append", metavar="WHICH",
        help="functions to trace: default, all, drops, a pattern, a file of names, or names (a,b,c)",
    )  # fmt: skip
    add("-n", "--namespaces", action="append", metavar="NAME", help="only these network namespaces (a,b)")
    add("-i", "--interfaces", action="append", metavar="NAME", help="only packets first seen on these (a,b)")
    add(
        "--match", default="entry", choices=("entry", "tc", "every"),
        help="where the filter is asked: where packets enter (default), only at TC, in every probe",
    )  # fmt: skip
    add("--returns", action="store_true", help="trace the returns of functions too")
    add("--sample", type=int, default=1, metavar="N", help="follow one packet in so many")
    add("--max-events", type=int, metavar="N", help="end after so many hops")
    add("--events-ring", type=int, metavar="BYTES", help="size of the events' ring buffer, a power of two")
    add("--facts-ring", type=int, metavar="BYTES", help="size of the headers' ring buffer, a power of two")
    add("--save", metavar="FILE", help="write to this file (Parquet) while it captures")
    add("--timeout", type=float, metavar="SECONDS", help="how long arming may take")
    add("--on", default="local", metavar="HOST", help="where: local (default) or ssh://user@host")


def capture_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Capture` that were meant; what was not said is left to its defaults."""
    arguments: dict[str, Any] = {
        "filter": " ".join(options.filter),
        "functions": _functions(options.functions),
        "namespaces": _split(options.namespaces),
        "interfaces": _split(options.interfaces),
    }
    for name in ("duration", "packets", "match", "returns", "sample", "max_events", "events_ring", "facts_ring",
                 "save", "timeout", "on"):  # fmt: skip
        arguments[name] = getattr(options, name)
    return {name: value for name, value in arguments.items() if value is not None}


def _split(words: list[str] | None) -> list[str] | None:
    return None if words is None else [name for word in words for name in word.split(",") if name]


def _functions(words: list[str] | None) -> str | list[str] | None:
    if words is None or (len(words) == 1 and not _NAMES.fullmatch(words[0])):
        return None if words is None else words[0]
    return [name for word in words for name in (word.split(",") if _NAMES.fullmatch(word) else [word])]
