"""The cache: what is kept comes back, and only if nobody else could have written it."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from bpfpath_nb.kernel import Kernel, cache, facts
from bpfpath_nb.kernel.btf import Btf

BUILD = "48dc540c8b763938"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bpfpath_nb" / f"kernel-{BUILD}.json"


def test_what_is_stored_is_loaded(place: Path) -> None:
    assert cache.load(BUILD) == {}
    assert cache.store(BUILD, {"types": {"a": 1}, "modules": {}})
    assert cache.load(BUILD)["types"] == {"a": 1}
    assert place.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in place.parent.iterdir()] == [place.name]  # nothing temporary is left


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"version":[0,0]}', b"\xff" * 100])
def test_a_damaged_file_is_as_good_as_none(place: Path, content: bytes) -> None:
    cache.store(BUILD, {})
    place.write_bytes(content)
    assert cache.load(BUILD) == {}


def test_a_file_of_another_kernel_is_not_used(place: Path) -> None:
    cache.store(BUILD, {"types": {}})
    kept = json.loads(place.read_bytes())
    place.write_text(json.dumps({**kept, "build_id": "0123456789abcdef"}))
    assert cache.load(BUILD) == {}


def test_a_file_that_others_can_write_is_not_used(place: Path) -> None:
    cache.store(BUILD, {"types": {}})
    place.chmod(0o666)
    assert cache.load(BUILD) == {}
    place.chmod(0o600)
    assert cache.load(BUILD) != {}
    place.parent.chmod(0o777)
    assert cache.load(BUILD) == {}
    assert not cache.store(BUILD, {})


def test_a_link_is_not_followed(place: Path, tmp_path: Path) -> None:
    cache.store(BUILD, {"types": {}})
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert cache.load(BUILD) == {}


def test_a_pipe_does_not_hang(place: Path) -> None:
    cache.store(BUILD, {})
    place.unlink()
    os.mkfifo(place, 0o600)
    assert cache.load(BUILD) == {}


@pytest.mark.parametrize("build", ["", "../../etc/passwd", "48DC", "48dc540c8b763938\n"])
def test_a_strange_build_id_names_no_file(place: Path, build: str) -> None:
    assert not cache.store(build, {"types": {}})
    assert cache.load(build) == {}
    assert not place.parent.exists()


def test_a_place_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert not cache.store(BUILD, {})
    assert cache.load(BUILD) == {}


def test_the_build_id_is_found_among_the_notes(tmp_path: Path) -> None:
    def note(name: bytes, kind: int, content: bytes) -> bytes:
        pad = [b"\0" * (-len(part) % 4) for part in (name, content)]
        return struct.pack("<III", len(name), len(content), kind) + name + pad[0] + content + pad[1]

    path = tmp_path / "notes"
    path.write_bytes(note(b"Linux\0", 257, b"6.18\0") + note(b"GNU\0", 3, bytes(range(20))) + note(b"Xen\0", 1, b"x"))
    assert cache.build_id(path) == bytes(range(20)).hex()
    for damaged in (b"", b"\xff" * 50, note(b"GNU\0", 3, b"")):
        path.write_bytes(damaged)
        assert cache.build_id(path) == ""
    assert cache.build_id(tmp_path / "absent") == ""


def test_a_kernel_known_from_the_cache_needs_no_btf(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = facts.read(Path(__file__).parents[1] / "facts" / "6.18.json.gz")
    cache.store(BUILD, {"types": recorded["types"], "modules": {}})

    def refuse(*_: object, **__: object) -> Btf:
        raise AssertionError("the BTF was parsed although the cache has all that was asked")

    monkeypatch.setattr(Btf, "load", refuse)
    kernel = Kernel("6.18", BUILD)
    assert kernel.macros["sk_buff__head"] == 192
    assert kernel.btf.functions_taking("sk_buff")["ip_rcv"] == 0
    with pytest.raises(AssertionError, match="parsed"):
        kernel.btf.structure("mm_struct")  # not in the record: only then
