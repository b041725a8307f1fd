"""Values of the wrong kind are refused with one typed error, wherever they are handed in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streams import capture

from bpfpath_nb import Filter, Recording, compare, sample
from bpfpath_nb.errors import FunctionError, OptionError

WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "query": (lambda rec: rec.query("flow.str.contains('(')"), "cannot be answered"),
    "a list for a packet": (lambda rec: rec.text([1, 2]), "one number"),
    "no packet's name": (lambda rec: rec.text("3"), "one number"),
    "words for a limit": (lambda rec: rec.text(limit="x"), "limit="),
    "no limit": (lambda rec: rec.text(limit=None), "limit="),
    "half a packet": (lambda rec: rec.text(limit=1.5), "limit="),
    "nothing to compare": (lambda rec: compare(None, rec), "not NoneType"),  # type: ignore[arg-type]
    "number of a namespace": (lambda rec: compare(rec, netns=("client", 3)), "3 is none"),  # type: ignore[arg-type]
    "one namespace of two": (lambda rec: compare(rec, netns=("client", None)), "None is none"),  # type: ignore[arg-type]
    "a number too large": (lambda rec: rec.query("hops ** 99999999999 > 1"), "cannot be answered"),
    "a query without end": (lambda rec: rec.query("hops > 1" + " and hops > 1" * 3000), "cannot be answered"),
    "lists of lists": (lambda rec: compare(rec, packets=([[1], [2, 3]], [3])), "by their numbers"),  # type: ignore[arg-type, list-item]
    "a table": (lambda rec: compare(rec, packets=([[1], [2]], [3])), "by their numbers"),  # type: ignore[arg-type, list-item]
    "number of a path": (lambda rec: compare(rec, packets=(1, 2)).align(3), "the path '3'"),  # type: ignore[arg-type]
    "number of a column": (lambda rec: rec.plot.latency(by=0), "`by` names a column"),
    "half a group": (lambda rec: rec.plot.latency(top=3.5), "top="),
    "number of a file": (lambda rec: Recording.load(5), "not by int"),  # type: ignore[arg-type]
    "no file of pwru's": (lambda rec: Recording.from_pwru(None), "not by NoneType"),  # type: ignore[arg-type]
    "bytes for a path": (lambda rec: Recording.from_retis(b"x"), "not by bytes"),  # type: ignore[arg-type]
    "nowhere to save": (lambda rec: rec.save(None), "not by NoneType"),
    "a path with a NUL": (lambda rec: rec.report("a\0b"), "NUL"),
    "no character of a path": (lambda rec: Recording.load("\ud800"), "No file can be called"),
    "samples": (lambda rec: sample(["dns"]), "no sample"),  # type: ignore[arg-type]
    "text for bytes": (lambda rec: Filter("udp").matches("a"), "not str"),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module")
def recording() -> Recording:
    return capture(20).recording()


@pytest.mark.parametrize("wrong", WRONG)
def test_a_value_of_the_wrong_kind_is_refused(recording: Recording, wrong: str) -> None:
    act, told = WRONG[wrong]
    with pytest.raises(OptionError, match=told):
        act(recording)


def test_a_function_is_meant_by_its_name(recording: Recording) -> None:
    with pytest.raises(FunctionError, match="0 is none"):
        recording.plot.heatmap(0)  # type: ignore[arg-type]


@pytest.mark.parametrize("write", ["save", "report", "to_pcapng", "to_json", "to_perfetto"])
def test_a_folder_that_is_not_there_is_told_by_the_path_that_was_asked_for(
    recording: Recording, tmp_path: Path, write: str
) -> None:
    path = tmp_path / "no" / "such"
    with pytest.raises(FileNotFoundError) as caught:
        getattr(recording, write)(path)
    assert caught.value.filename == str(path)
