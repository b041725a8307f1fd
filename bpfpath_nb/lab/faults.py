"""Faults to switch on: packets that a namespace drops by an nftables rule.

All rules stand in one table of the namespace, `inet bpfpath_lab`, with one chain for each hook, made when first
needed. A rule is removed by the handle that the kernel gave it. The table goes with the namespace.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from bpfpath_nb.errors import LabError

if TYPE_CHECKING:
    from bpfpath_nb.lab.network import Lab

Hook = Literal["prerouting", "input", "forward", "output", "postrouting"]

_TABLE = "inet bpfpath_lab"


class Drop:
    """A rule that drops packets; made by `Lab.drop`. A context manager."""

    def __init__(self, lab: Lab, ns: str, match: str, hook: Hook) -> None:
        if hook not in get_args(Hook):
            raise LabError(f"there is no hook {hook!r}; nftables has {', '.join(get_args(Hook))}")
        self.ns = ns
        self.match = match
        self.hook = hook
        self._lab = lab
        self._removed = False
        self._nft("add", "table", *_TABLE.split())
        self._nft("add", "chain", *_TABLE.split(), hook, f"{{ type filter hook {hook} priority 0; policy accept; }}")
        self._nft("add", "rule", *_TABLE.split(), hook, *shlex.split(match), "counter", "drop")
        # Not by --echo: nft 1.0.6 on kernel 5.10 echoes no rule. The newest has the highest handle.
        self._handle = max(rule["handle"] for rule in self._rules())
        self._last = 0

    @property
    def packets(self) -> int:
        """How many packets it dropped."""
        if not self._removed:
            self._last = self._count()
        return self._last

    def remove(self) -> None:
        """Take the rule away. A second call does nothing."""
        if self._removed or self._lab.closed:
            return
        self._last = self._count()
        self._nft("delete", "rule", *_TABLE.split(), self.hook, "handle", str(self._handle))
        self._removed = True

    def _rules(self) -> list[dict[str, Any]]:
        listed = json.loads(self._nft("--json", "--handle", "list", "chain", *_TABLE.split(), self.hook))
        return [item["rule"] for item in listed["nftables"] if "rule" in item]

    def _count(self) -> int:
        for rule in self._rules():
            if rule["handle"] == self._handle:
                return int(next(part["counter"]["packets"] for part in rule["expr"] if "counter" in part))
        return self._last

    def _nft(self, *words: str) -> str:
        done: Any = self._lab.run(self.ns, ["nft", *words])
        if done.returncode:
            said = " ".join(done.stderr.split())
            raise LabError(
                f"nftables refused {self.match!r} in namespace {self.ns!r}: {said}. See nft(8) for what it can match"
            )
        return str(done.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "removed" if self._removed or self._lab.closed else "in force"
        return f"Drop({self.ns}, {self.hook}, {self.match!r}, {state})"
