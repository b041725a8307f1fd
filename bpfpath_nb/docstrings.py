"""The columns of `schema` in the docstrings of the frames, so that the two cannot differ."""

from __future__ import annotations

from typing import Final

from bpfpath_nb import schema

_FRAMES: Final = {
    "df": schema.HOPS, "packets": schema.PACKETS, "paths": schema.PATHS, "functions": schema.FUNCTIONS,
    "transitions": schema.TRANSITIONS, "drops": schema.DROPS, "namespaces": schema.NAMESPACES,
    "latency": schema.LATENCY, "quality": schema.QUALITY,
}  # fmt: skip


def document_frames(views: type) -> None:
    """Put each frame's columns where its property's docstring has its name in braces."""
    for name, columns in _FRAMES.items():
        view = views.__dict__[name]
        if view.__doc__:
            view.__doc__ = view.__doc__.replace(f"        {{{name}}}", schema.document(columns, indent=8))
