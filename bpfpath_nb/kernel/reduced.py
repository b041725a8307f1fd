"""What we use of a kernel's types, and nothing else.

BTF is megabytes, of which we use some kilobytes: the structures of `layout`, the functions and tracepoints that meet a
packet, the enumerations of drop reasons. `reduce` takes them out of any `Types`, as data that can be written as JSON;
`ReducedTypes` answers from them as the full BTF would. Two things are made of that: the cache of the running kernel
(`cache.py`), since the same kernel is asked again at each start of a tracer, and recorded facts of real kernels
(`facts.py`), with which everything here is tested without that kernel and without root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.kernel import layout, reasons
from bpfpath_nb.kernel.structures import Field, Structure, Types

PACKET = "sk_buff"
KEPT_ARGUMENTS = ("struct sk_buff *", "struct neighbour *")  # a tracepoint with one of these may lead to a packet

_ENUMS = reasons.ENUMS


def reduce(types: Types, structures: Iterable[str] = layout.STRUCTURES) -> dict[str, Any]:
    """What we use of a kernel's or a module's types, as JSON-ready data."""
    described: dict[str, Any] = {}
    todo = list(structures)
    while todo:
        name = todo.pop()
        if name in described:
            continue
        structure = types.structure(name)
        if structure is None:
            described[name] = None  # known to be absent: the full BTF need not be asked again
            continue
        described[name] = [structure.size, {key: list(f) for key, f in structure.fields.items()}]
        # Types without a tag are described under the member's name and belong to their parent.
        todo += [f.structure for f in structure.fields.values() if f.structure.startswith(name + ".")]
    enums = {name: types.enumeration(name) for name in _ENUMS}
    tracepoints = {name: types.tracepoint_arguments(name) for name in types.tracepoint_names()}
    return {
        "structures": described,
        "enums": {name: {str(v): n for v, n in values.items()} for name, values in enums.items() if values is not None},
        "type_ids": {name: types.type_id(name) for name in layout.NUMBERED},
        "functions": types.functions_taking(PACKET),
        "tracepoints": {n: a for n, a in tracepoints.items() if any(k in arg for k in KEPT_ARGUMENTS for arg in a)},
    }


class ReducedTypes(Types):
    """Types from what `reduce` gave. What is not in there is asked of `full`, where there is one.

    Raises
    ------
    ValueError
        The data is not of the shape that `reduce` makes.
    """

    def __init__(self, data: Mapping[str, Any], full: Callable[[], Types] | None = None) -> None:
        self._full = full
        try:
            self._structures = {str(n): None if d is None else _structure(d) for n, d in data["structures"].items()}
            self._enums = {str(n): {int(v): _text(t) for v, t in e.items()} for n, e in data["enums"].items()}
            self._type_ids = {_text(n): _number(number) for n, number in data.get("type_ids", {}).items()}
            self._functions = {_text(n): _number(at) for n, at in data["functions"].items()}
            self._tracepoints = {_text(n): [_text(a) for a in args] for n, args in data["tracepoints"].items()}
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"damaged record of a kernel's types: {error!r}") from error

    def structure(self, name: str) -> Structure | None:
        """See `Types.structure`."""
        if name in self._structures or self._full is None:
            return self._structures.get(name)
        return self._full().structure(name)

    def enumeration(self, name: str) -> dict[int, str] | None:
        """See `Types.enumeration`."""
        found = self._enums.get(name)
        return self._full().enumeration(name) if found is None and self._full and name not in _ENUMS else found

    def type_id(self, name: str) -> int:
        """See `Types.type_id`; records of before these were kept have none."""
        return self._type_ids.get(name, 0)

    def functions_taking(self, struct: str) -> dict[str, int]:
        """See `Types.functions_taking`; for other structures than `sk_buff` the full BTF is needed."""
        if struct == PACKET:
            return dict(self._functions)
        if self._full is None:
            raise RequirementError(f"A reduced record has only the functions that take a {PACKET}, not a {struct}.")
        return self._full().functions_taking(struct)

    def tracepoint_names(self) -> list[str]:
        """See `Types.tracepoint_names`; only those that may lead to a packet."""
        return sorted(self._tracepoints)

    def tracepoint_prototype(self, name: str) -> list[str] | None:
        """See `Types.tracepoint_prototype`."""
        found = self._tracepoints.get(name)
        return self._full().tracepoint_prototype(name) if found is None and self._full else found


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise TypeError(f"{value!r} is not a plausible number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise TypeError(f"{value!r} is not a name")
    return value


def _structure(data: Any) -> Structure:
    size, fields = data
    return Structure(
        _number(size),
        {_text(n): Field(_number(b), _number(w), bool(f), _text(t), _text(s)) for n, (b, w, f, t, s) in fields.items()},
    )
