"""A capture that fails while it runs: its own stream says so, and the next one is as good as ever."""

from __future__ import annotations

import errno
import io
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from streams import start_record

from bpfpath_nb.errors import FilterError
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE
from bpfpath_nb.stream import Reader
from bpfpath_nb.tracer import service, session


class Broken:
    """An attachment that cannot look around, or cannot be detached."""

    where = "look_around"

    def __init__(self, *_: object) -> None:
        self.refused: list[dict[str, str]] = []
        self.devices: list[Any] = []
        self.counted: list[int] = []
        self.counters = SimpleNamespace(arm=lambda state: None, read=lambda *_, **__: {}, state=lambda: {"tagged": 0})
        self.events = SimpleNamespace(take=lambda: np.empty(0, EVENT_DTYPE))
        self.facts = SimpleNamespace(take=lambda: np.empty(0, FACTS_DTYPE))
        self.deliveries = self.moves = SimpleNamespace(look=list)
        self.closed = False

    def start_record(self) -> dict[str, Any]:
        return start_record()

    def look_around(self, seen: set[int]) -> None:
        if self.where == "look_around":
            raise OSError(errno.EMFILE, "too many open files")

    def look_at_modules(self) -> None:
        pass

    def close(self) -> None:
        if self.where == "close":
            raise OSError(errno.EIO, "cannot detach")


@pytest.mark.parametrize(("where", "says"), [("look_around", "too many open files"), ("close", "cannot detach")])
def test_an_error_ends_the_open_stream(monkeypatch: pytest.MonkeyPatch, where: str, says: str) -> None:
    monkeypatch.setattr(session, "Attachment", Broken)
    monkeypatch.setattr(Broken, "where", where)
    sink = io.BytesIO()
    request = SimpleNamespace(max_events=10, duration=0.01 if where == "close" else None, packets=None)
    try:
        session.capture(request, None, sink, lambda seconds: "")  # type: ignore[arg-type]
        gone = False
    except session.Gone:
        gone = True
    assert gone == (where == "close"), "what cannot be detached must go with the process"
    service.refuse(sink, FilterError("the next answer"))  # type: ignore[arg-type]

    sink.seek(0)
    *_, last = Reader(sink)
    assert last.end is not None
    assert last.end["reason"] == "error"
    assert says in last.end["message"]
    with pytest.raises(FilterError, match="next answer"):
        Reader(sink)


def test_only_the_sink_says_that_the_notebook_is_gone() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(session.Gone):
        service.Sink(write_end).write(b"x")
    os.close(write_end)
