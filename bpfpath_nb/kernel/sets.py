"""Which functions to trace: from what the user asked for to what this kernel has.

A user may ask for a set (``"default"``, ``"all"``, ``"drops"``), a list of names, a pattern, or a file in the format of
the paper, and writes the names of whatever kernel the list was made on. The kernel at hand may call the same thing
otherwise, or keep it in a module that is not loaded, or have inlined it. So every name goes through the same three
steps: the kernel has it; or the catalogue knows what stands in for it here; or the catalogue knows it, and this kernel
has nothing of the kind, which is reported and no error. Only a name that nobody knows is an error, with the nearest
known ones in the message.

On a kernel without kprobes there are only tracepoints. The same request is then answered in tracepoints: a function's
name stands for the tracepoint that shows its work, and what no tracepoint shows is reported as not attachable.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bpfpath_nb.errors import FunctionError
from bpfpath_nb.kernel.catalogue import Catalogue

SETS = ("default", "all", "drops")

Spec = str | os.PathLike[str] | Sequence[str]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_GLOB = re.compile(r"[A-Za-z0-9_.]*[*?][A-Za-z0-9_.*?]*")
_MAX_PATTERN = 300
_MAX_FILE = 1 << 20
_MAX_CANDIDATES = 3000


@dataclass(frozen=True, slots=True)
class Selection:
    """What to probe, and what became of the rest.

    Attributes
    ----------
    probes : dict of str to int
        Functions or tracepoints this kernel has, and the position (0-based) of the packet among their arguments.
    final : frozenset of str
        Those of `probes` at which a packet's way ends.
    stand_ins : dict of str to str
        What was asked for and is called otherwise here, to what is probed instead.
    missing : tuple of str
        What is known, was asked for or belongs to the set, and has nothing in its place on this kernel.
    """

    probes: dict[str, int]
    final: frozenset[str] = frozenset()
    stand_ins: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed specification: a set, or names, or a pattern; and the names marked as last of a path."""

    set: str = ""
    names: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    final: frozenset[str] = frozenset()


def read_list(path: str | os.PathLike[str]) -> Request:
    """Read a list of functions in the paper's format (``kp_funcs.txt``).

    One name a line; an optional ``1`` after it marks the last function of a path, ``0`` is the same as nothing. Empty
    lines and what follows a ``#`` are skipped. Lines in the sections of later versions (``:arg1:``, ``:final:``) are
    understood too: the kernel's BTF knows the arguments, ``:final:`` marks what follows it.

    Raises
    ------
    FunctionError
        The file cannot be read, or a line is something else. The message has the line's number and not its text, since
        a process with more rights than the user may be reading.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise FunctionError(f"The list of functions {os.fspath(path)} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_FILE:
        raise FunctionError(f"The list of functions {os.fspath(path)} is larger than {_MAX_FILE >> 10} KiB.")
    names: dict[str, None] = {}
    final: set[str] = set()
    ending = False
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) == 1 and re.fullmatch(r":\w+:", words[0]):
            ending = words[0] == ":final:"
            continue
        if len(words) > 2 or not _NAME.fullmatch(words[0]) or words[1:] not in ([], ["0"], ["1"]):
            raise FunctionError(
                f"Line {number} of {os.fspath(path)} is not a function's name with an optional 1 after it; "
                "the file has one name a line."
            )
        names[words[0]] = None
        if ending or words[1:] == ["1"]:
            final.add(words[0])
    if not names:
        raise FunctionError(f"The list of functions {os.fspath(path)} is empty; it has one name a line.")
    return Request(names=tuple(names), final=frozenset(final))


def parse(spec: Spec | Request, *, files: bool = True) -> Request:
    """Understand what the user asked for.

    Parameters
    ----------
    spec
        ``"default"``, ``"all"`` or ``"drops"``; one name or several with commas; ``"tcp_*"``; a regular expression over
        the whole name, between slashes or recognised by its characters; a path, given as a `Path` or as text with a
        slash or ending in ``.txt`` or ``.list``; or a sequence of names.
    files
        Whether a path may be opened. A privileged process that takes requests from others says no.

    Raises
    ------
    FunctionError
        It is none of these.
    """
    if isinstance(spec, Request):
        return spec
    if isinstance(spec, os.PathLike):
        return _file(os.fspath(spec), files)
    if not isinstance(spec, str):
        return _names(spec)
    text = spec.strip()
    if text in SETS:
        return Request(set=text)
    if len(text) > 2 and text[0] == text[-1] == "/":
        return Request(pattern=_compile(text[1:-1]))
    if "/" in text or text.endswith((".txt", ".list")):
        return _file(text, files)
    words = [word.strip() for word in text.split(",")]
    if all(_NAME.fullmatch(word) for word in words):
        return _names(words)
    if _GLOB.fullmatch(text) and ".*" not in text:
        return Request(pattern=_compile(re.escape(text).replace(r"\*", r"\w*").replace(r"\?", r"\w")))
    return Request(pattern=_compile(text))


def _file(path: str, files: bool) -> Request:
    if not files:
        raise FunctionError(f"'{path}' looks like a file, which is not opened here; give the names in it as a list.")
    return read_list(path)


def _names(names: Iterable[str]) -> Request:
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise FunctionError(f"{name!r} is not the name of a kernel function.")
    if not wanted:
        raise FunctionError(f"The list of functions is empty; name some, or a set: {', '.join(SETS)}.")
    return Request(names=wanted)


def _compile(pattern: str) -> re.Pattern[str]:
    if not pattern or len(pattern) > _MAX_PATTERN:
        raise FunctionError(f"A pattern for functions has 1 to {_MAX_PATTERN} characters.")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise FunctionError(f"{pattern!r} is not a regular expression: {error}.") from error


def select(
    spec: Spec | Request,
    available: Mapping[str, int],
    catalogue: Catalogue,
    *,
    symbols: Collection[str] = (),
    files: bool = True,
) -> Selection:
    """Choose functions.

    Parameters
    ----------
    spec
        What is asked for; see `parse`.
    available
        The functions of this kernel that take a packet, with the position of that argument.
    catalogue
        What is known about functions.
    symbols
        All functions of this kernel, only to tell in the message "takes no packet" from "does not exist".

    Raises
    ------
    FunctionError
        A name that neither the kernel nor the catalogue knows, or a request that nothing on this kernel answers.
    """
    request = parse(spec, files=files)
    probes: dict[str, int] = {}
    stand_ins: dict[str, str] = {}
    missing: list[str] = []
    unknown: list[str] = []
    if request.set == "all":
        wanted = [name for name in available if not catalogue.never(name) and not catalogue.control(name)]
    elif request.set:
        chosen = (f for f in catalogue.functions.values() if (f.drop if request.set == "drops" else f.default))
        wanted = [function.name for function in chosen]
    elif request.pattern is not None:
        wanted = [n for n in available if request.pattern.fullmatch(n) and not catalogue.never(n)]
    else:
        wanted = list(request.names)
    final = {name for name in request.final if name in available}
    for name in wanted:
        if name in available:
            probes[name] = available[name]
            continue
        stand_in = next((other for other in catalogue.stand_ins(name) if other in available), None)
        if stand_in is not None:
            probes[stand_in], stand_ins[name] = available[stand_in], stand_in
            if name in request.final:
                final.add(stand_in)
        elif catalogue.find(name) is not None:
            missing.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise FunctionError(_unknown(unknown, available, catalogue, symbols))
    if not probes:
        raise FunctionError(_nothing(request, missing, "function"))
    for name in probes:
        entry = catalogue.find(name)
        if entry is not None and entry.final and not request.final:
            final.add(name)
    return Selection(probes, frozenset(final), stand_ins, tuple(missing))


def select_tracepoints(
    spec: Spec | Request,
    available: Mapping[str, int],
    catalogue: Catalogue,
    *,
    known: Collection[str] = (),
    files: bool = True,
) -> Selection:
    """Choose tracepoints, where functions cannot be probed.

    Parameters
    ----------
    spec
        What is asked for, in names of functions or tracepoints; see `parse`.
    available
        Tracepoints of this kernel that pass a packet (or lead to one), with the position of that argument.
    catalogue
        Tells which tracepoints show the work of which functions.
    known
        Functions of this kernel; named ones that no tracepoint shows are in `missing` ("not attachable on this
        kernel").

    Raises
    ------
    FunctionError
        A name that nobody knows, or a request that no tracepoint answers.
    """
    request = parse(spec, files=files)
    shows: dict[str, list[str]] = {}
    for tracepoint in catalogue.tracepoints.values():
        if tracepoint.name in available:
            for function in tracepoint.functions:
                shows.setdefault(function, []).append(tracepoint.name)
    wanted: list[str] = []
    stand_ins: dict[str, str] = {}
    missing: list[str] = []
    unknown: list[str] = []
    final: set[str] = set()
    if request.set == "drops":
        wanted = [t.name for t in catalogue.tracepoints.values() if t.drop and t.name in available]
    elif request.set:
        wanted = list(available)
    elif request.pattern is not None:
        pattern = request.pattern
        wanted = [name for name in available if pattern.fullmatch(name)]
        wanted += [name for function, names in shows.items() if pattern.fullmatch(function) for name in names]
    for name in request.names:
        others = [n for other in catalogue.stand_ins(name) for n in shows.get(other, ())]
        found = [name] if name in available else list(dict.fromkeys(shows.get(name) or others))
        if found:
            wanted += found
            if name not in available:
                stand_ins[name] = found[0]
            if name in request.final:
                final.update(found)
        elif name in known or name in catalogue.tracepoints or catalogue.find(name) is not None:
            missing.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise FunctionError(_unknown(unknown, available, catalogue, known))
    probes = {name: available[name] for name in dict.fromkeys(wanted)}
    if not probes:
        raise FunctionError(_nothing(request, missing, "tracepoint"))
    if not request.final:
        final = {n for n in probes if n in catalogue.tracepoints and catalogue.tracepoints[n].final}
    return Selection(probes, frozenset(final), stand_ins, tuple(missing))


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """The names most like `name`, the most alike first; at most `count`.

    Only candidates that share a word of three letters or more with it, or its beginning, are compared; that is fast and
    loses no name that a person would take for a misspelling.
    """
    words = {word for word in name.lower().split("_") if len(word) > 2}
    pool = []
    for other in candidates:
        if other[:4] == name[:4] or words.intersection(other.split("_")) or sorted(other) == sorted(name):
            pool.append(other)
            if len(pool) >= _MAX_CANDIDATES:
                break
    return difflib.get_close_matches(name, pool, count, 0.6)


def least_far(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """The names least unlike `name`, where nothing is near; of few candidates, since each is compared."""
    return difflib.get_close_matches(name[:128], list(candidates)[:_MAX_CANDIDATES], count, 0.0)


def _unknown(names: Sequence[str], available: Mapping[str, int], catalogue: Catalogue, symbols: Collection[str]) -> str:
    parts = []
    for name in names[:5]:
        if name in symbols:
            parts.append(f"'{name}' takes no packet (struct sk_buff *), so it cannot be on a packet's way")
            continue
        near = nearest(name, dict.fromkeys([*available, *catalogue.functions]))
        near = near or least_far(name, catalogue.functions)
        parts.append(f"'{name}' is not known" + (f"; the nearest are {', '.join(near)}" if near else ""))
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{'. '.join(parts)}{more}. Check the spelling, or load the module that has it."


def _nothing(request: Request, missing: Sequence[str], what: str) -> str:
    asked = f"the set '{request.set}'" if request.set else ", ".join(request.names[:5])
    if request.pattern is not None:
        asked = f"the pattern {request.pattern.pattern!r}"
    why = "not attachable on this kernel" if what == "tracepoint" else "not on this kernel"
    here = f" ({', '.join(missing[:5])}: {why})" if missing else ""
    return f'No {what} that takes a packet on this kernel answers {asked}{here}. functions="default" always has some.'
