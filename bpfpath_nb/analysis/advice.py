"""What a drop or a symptom means and what to look at next: the rules of `advice.toml`, and how they are applied.

A rule is data. One of the kind `drop` tells by which of the kernel's words it is known:

reasons     names of the drop reason
functions   and of the function that gave the packet up; with both, both must fit
silent      functions that tell it where the kernel gives no reason, or only NOT_SPECIFIED
stack       functions of which one must stand in the stack
proto       protocols of the packet

A star stands for any. The first rule that fits counts, so what is special stands before what is general. A rule of
another kind belongs to the symptom of its name (`symptoms`).

Every rule says what it means (`title`, `meaning`), where one would look (`look`, a few words for a table) and, in
`check`, commands for this very case. A command is written as for a shell and taken apart into words first; only then
are names and addresses put in, and what comes out is quoted word by word. A packet, a process, or whoever named an
interface chose those, so none of them can become a second command. A command that needs what is not known is left
out. Nothing is ever executed here.
"""

from __future__ import annotations

import re
import shlex
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.names import Named
from bpfpath_nb.schema import SEVERITIES

NOT_SAID: Final = frozenset({"", "NOT_SPECIFIED"})

_NAME_OF_IP_NETNS = re.compile(r"[A-Za-z0-9_.@+-]+")
_FIELDS: Final = string.Formatter()


@dataclass(frozen=True)
class Rule:
    """One piece of advice; the module tells what the fields mean."""

    id: str
    kind: str
    title: str
    meaning: str
    look: str
    severity: str
    check: tuple[str, ...] = ()
    reasons: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    stack: frozenset[str] = frozenset()
    proto: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, reason: str, func: str, stack: str, proto: str) -> bool:
        """Whether a drop is of this rule; an empty text is not known."""
        if reason in NOT_SAID and self.silent:
            told = func in self.silent or "*" in self.silent
        else:
            told = (reason in self.reasons and (not self.functions or func in self.functions)) or "*" in self.reasons
        on_the_way = not self.stack or not self.stack.isdisjoint(stack.split(" < "))
        return told and on_the_way and (not self.proto or proto in self.proto)

    def commands(self, values: Mapping[str, str]) -> list[str]:
        """What to check, with the values of a case filled in and quoted for a shell."""
        filled = (_fill(command, values) for command in self.check)
        return [command for command in filled if command is not None]


def _fill(command: str, values: Mapping[str, str]) -> str | None:
    words: list[str] = []
    for word in shlex.split(command):
        needed = {name for _, name, _, _ in _FIELDS.parse(word) if name}
        if not all(values.get(name) for name in needed):
            return None
        words.append(word.format_map(values))
    return values.get("inside", "") + shlex.join(words)


def inside(netns: str, inum: int) -> str:
    """What to write before a command so that it runs in a network namespace.

    A name that `ip netns` cannot have made, such as a container's, is reached through one of its processes.
    """
    if netns == "host" or not inum:
        return ""
    if _NAME_OF_IP_NETNS.fullmatch(netns) and not netns.startswith("-"):
        return f"ip netns exec {shlex.quote(netns)} "
    return f'nsenter --net --target "$(lsns --noheadings --output PID {int(inum)} | head -n 1)" '


@cache
def rules() -> tuple[Rule, ...]:
    """All rules, in the order in which they are tried."""
    text = resources.files("bpfpath_nb.analysis").joinpath("advice.toml").read_text(encoding="utf-8")
    return tuple(_rule(entry) for entry in tomllib.loads(text)["rule"])


def _rule(entry: dict[str, Any]) -> Rule:
    rule = Rule(
        id=entry.pop("id"),
        kind=entry.pop("kind", "drop"),
        title=entry.pop("title"),
        meaning=entry.pop("meaning"),
        look=entry.pop("look"),
        severity=entry.pop("severity", "fault"),
        check=tuple(entry.pop("check", ())),
        reasons=_words(entry, "reasons"),
        functions=_words(entry, "functions"),
        silent=_words(entry, "silent"),
        stack=_words(entry, "stack"),
        proto=_words(entry, "proto"),
        options=entry,
    )
    if rule.severity not in SEVERITIES:
        raise ValueError(f"advice.toml: {rule.id} has a severity that there is not: {rule.severity}")
    return rule


def _words(entry: dict[str, Any], name: str) -> frozenset[str]:
    return frozenset(entry.pop(name, "").split())


def match_drops(reason: Named, func: Named, stack: Named, proto: Named) -> npt.NDArray[np.int16]:
    """Of each drop the rule that explains it, as a position in `rules`.

    The last rule of the kind `drop` fits everything, so that each drop has one. Rules are asked once for each
    combination that occurs.
    """
    columns = (reason, func, stack, proto)
    key = np.zeros(len(func.codes), np.int64)
    for column in columns:
        key = key * (len(column.names) + 1) + column.codes + 1
    _, example, which = np.unique(key, return_index=True, return_inverse=True)
    found = [
        _first_that_fits(*(column.names[code] if (code := int(column.codes[at])) >= 0 else "" for column in columns))
        for at in example.tolist()
    ]
    return np.array(found, np.int16)[which.reshape(-1)] if found else np.empty(0, np.int16)


def _first_that_fits(reason: str, func: str, stack: str, proto: str) -> int:
    return next(at for at, rule in enumerate(rules()) if rule.kind == "drop" and rule.fits(reason, func, stack, proto))


def advice(rule: npt.NDArray[np.int16]) -> Named:
    """Of each drop one line: what it means, and where to look."""
    return Named(rule, [f"{rule.title}: see {rule.look}" for rule in rules()])
