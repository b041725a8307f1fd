"""The paths of namespaces that the notebook names, which need not be what they say they are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bpfpath_nb.errors import NamespaceError
from bpfpath_nb.lab import Lab
from bpfpath_nb.tracer.places import NAMED, Places


def test_nothing_beside_a_named_path_is_read(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "ns").mkdir()
    named = tmp_path / "ns/net"
    named.symlink_to(NAMED / next(iter(lab.names.values())))
    (tmp_path / "cgroup").write_text("0::/lxc/forged\n")
    places = Places([str(named)])
    try:
        (namespace,) = places.known.values()
        assert namespace.name == f"net:[{namespace.inum}]"
    finally:
        places.close()


def test_a_pipe_in_the_place_of_a_namespace_is_not_opened(lab: Lab, tmp_path: Path) -> None:
    pipe = tmp_path / "net"
    os.mkfifo(pipe)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # opening it would wait for a writer
    places = Places([next(iter(lab.names.values()))])
    signal.alarm(5)
    try:
        assert not places._open(pipe.stat().st_ino, pipe)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        places.close()


def test_what_is_no_namespace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NamespaceError, match="There is no network namespace"):
        Places([str(tmp_path)])
