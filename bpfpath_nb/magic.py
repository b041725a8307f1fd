"""What `%load_ext bpfpath_nb` does to a notebook.

It gives the notebook the names that one needs to begin. A name that the user has already is left alone, and said: a
notebook whose `Capture` became another one in silence would be hard to understand. `%unload_ext` takes away only what
is still ours.
"""

from __future__ import annotations

from typing import Any, Final

import bpfpath_nb

NAMES: Final = ("Capture", "Recording", "doctor")

_given: dict[int, dict[str, Any]] = {}
"""What each shell was given, by the shell's id; a process may have several."""


def load(shell: Any) -> None:
    """Give the shell the names that it does not have."""
    given, kept = {}, []
    for name in NAMES:
        value = getattr(bpfpath_nb, name)
        if name not in shell.user_ns:
            given[name] = value
        elif shell.user_ns[name] is not value:
            kept.append(name)
    # Not interactive: `%who` lists what the user made, and `%reset` is to leave these.
    shell.push(given, interactive=False)
    _given[id(shell)] = _given.get(id(shell), {}) | given
    if kept:
        print(
            f"bpfpath_nb: you have a {' and a '.join(kept)} already, which was left alone; "
            f"use {', '.join(f'bpfpath_nb.{name}' for name in kept)} for ours."
        )


def unload(shell: Any) -> None:
    """Take back what `load` gave, if it is still that."""
    for name, value in _given.pop(id(shell), {}).items():
        if shell.user_ns.get(name) is value:
            del shell.user_ns[name]
            shell.user_ns_hidden.pop(name, None)
