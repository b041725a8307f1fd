"""Finding kernels, and what is said to apt, to virtme-ng's machine and to the guest. Nothing is booted or fetched."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bpfpath_nb.errors import LabError
from bpfpath_nb.lab import conversation, kernels, pack, vm

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of kernels of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bpfpath_nb" / "kernels"


def put(cache: Path, name: str, release: str) -> Path:
    """A kernel as `kernels` keeps it, as far as finding it goes."""
    folder = cache / name / release
    (folder / "boot").mkdir(parents=True)
    (folder / "boot" / f"vmlinuz-{release}").touch()
    return folder


# What apt-cache depends --recurse prints, shortened: one package up to 7.0, three from 7.1 on.
BOOKWORM = """\
linux-image-amd64
  Depends: linux-image-6.1.0-56-amd64
linux-image-6.1.0-56-amd64
  Depends: kmod
  Depends: linux-base
 |Depends: initramfs-tools
kmod
linux-base
"""
SID = """\
linux-image-amd64
  Depends: linux-image-7.2.13+deb14-amd64
linux-base-amd64
linux-image-7.2.13+deb14-amd64
  Depends: linux-binary-7.2.13+deb14-amd64
linux-base-7.2.13+deb14-amd64
linux-binary-7.2.13+deb14-amd64
linux-modules-7.2.13+deb14-amd64
<linux-initramfs-tool>
"""


def test_the_packages_of_a_kernel_are_found_from_its_metapackage() -> None:
    assert kernels.parts(BOOKWORM) == ("6.1.0-56-amd64", ["linux-image-6.1.0-56-amd64"])
    assert kernels.parts(SID) == (
        "7.2.13+deb14-amd64",
        [
            "linux-binary-7.2.13+deb14-amd64",
            "linux-image-7.2.13+deb14-amd64",
            "linux-modules-7.2.13+deb14-amd64",
        ],
    )


def test_of_two_releases_the_newer_is_taken() -> None:
    release, packages = kernels.parts("linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-56-amd64\n")

    assert release == "6.1.0-56-amd64"
    assert packages == ["linux-image-6.1.0-56-amd64"]


def test_lists_without_a_kernel_are_an_error() -> None:
    with pytest.raises(LabError, match="no kernel"):
        kernels.parts("linux-base\nkmod\n")


def test_sources_are_on_the_mirrors_that_the_system_uses() -> None:
    system = (
        "Debian|http://mirror.example.test/debian/\n"
        "Debian|http://other.example.test/debian/\n"
        "Debian-Security|http://mirror.example.test/sec/\n"
        "Other|http://packages.example.test/debian/\n"
    )

    lines = kernels.sources_list(("bullseye", "bullseye-security"), system).splitlines()

    assert [line.partition("] ")[2] for line in lines] == [
        "http://mirror.example.test/debian/ bullseye main",
        "http://mirror.example.test/sec/ bullseye-security main",
    ]
    assert all(line.startswith("deb [signed-by=/") for line in lines)


def test_sources_before_the_first_update_are_known_by_their_address() -> None:
    system = "|http://mirror.example.test/debian/\n|http://mirror.example.test/debian-security/\n"

    text = kernels.sources_list(("sid", "bookworm-security"), system)

    assert "http://mirror.example.test/debian/ sid main" in text
    assert "http://mirror.example.test/debian-security/ bookworm-security main" in text


def test_sources_without_a_mirror_are_those_of_debian() -> None:
    text = kernels.sources_list(("sid", "bookworm-security"), "Ubuntu|http://archive.example.test/ubuntu/\n")

    assert "http://deb.debian.org/debian/ sid main" in text
    assert "http://deb.debian.org/debian-security/ bookworm-security main" in text


def test_modules_load_after_what_they_need() -> None:
    dependencies = (
        "kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n"
        "kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko\n"
        "kernel/drivers/virtio/virtio.ko:\n"
        "kernel/fs/overlayfs/overlay.ko:\n"
    )

    assert kernels.load_order(dependencies, ["virtio_blk", "built_in", "overlay"]) == [
        "kernel/drivers/virtio/virtio.ko",
        "kernel/drivers/virtio/virtio_ring.ko",
        "kernel/drivers/block/virtio_blk.ko",
        "kernel/fs/overlayfs/overlay.ko",
    ]


def test_a_kernel_is_here_when_it_is_complete(cache: Path) -> None:
    source = kernels.SOURCES["6.1"]
    (cache / "6.1" / ".unpacking-x" / "done" / "boot").mkdir(parents=True)
    (cache / "6.1" / "6.1.0-50-amd64").mkdir()
    assert kernels.present(source) is None

    folder = put(cache, "6.1", "6.1.0-9-amd64")
    assert kernels.present(source) == kernels.Kernel("6.1", "6.1.0-9-amd64", folder)

    put(cache, "6.1", "6.1.0-56-amd64")
    found = kernels.present(source)
    assert found is not None
    assert found.release == "6.1.0-56-amd64"
    assert found.image.is_file()


def test_a_kernel_is_found_by_its_name_or_by_the_beginning_of_its_release(cache: Path) -> None:
    put(cache, "sid", "7.2.13+deb14-amd64")

    assert kernels.find("6.12").name == "6.12"
    assert kernels.find("7.2").name == "sid"
    assert kernels.find("7.2.13+deb14-amd64").name == "sid"
    assert kernels.find("7").name == "sid"
    for unknown in ("7.2.1", "../6.1", ""):
        with pytest.raises(LabError, match=r"5\.10, 6\.1, 6\.12, sid"):
            kernels.find(unknown)


def test_the_table_tells_which_kernels_are_here(cache: Path) -> None:
    put(cache, "6.1", "6.1.0-56-amd64")

    lines = kernels.table().splitlines()

    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["5.10", "no"],
        ["6.1", "6.1.0-56-amd64"],
        ["6.12", "no"],
        ["sid", "no"],
    ]
    assert str(cache) in lines[-1]


def test_a_kernel_that_is_here_needs_no_network_and_is_locked_while_it_is_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    put(cache, "6.12", "6.12.117+deb12-amd64")

    with kernels.held(kernels.SOURCES["6.12"]) as kernel:
        assert kernel.release == "6.12.117+deb12-amd64"
        with (cache / "6.12" / "lock").open("w") as other:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a second machine may run it
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody may replace it


def test_a_kernel_that_moves_is_used_as_it_is_while_it_cannot_be_looked_up(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> kernels.Kernel:
        raise LabError("no network.")

    monkeypatch.setattr(kernels, "_fetch", refuse)
    put(cache, "sid", "7.2.13+deb14-amd64")

    with kernels.held(kernels.SOURCES["sid"]) as kernel:
        assert kernel.release == "7.2.13+deb14-amd64"

    assert "no network. The kernel that is here is used." in capsys.readouterr().err


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(kernels.shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
    monkeypatch.setattr(kernels.shutil, "which", lambda tool, **_: f"/usr/bin/{tool}")
    monkeypatch.setattr(kernels, "_KEYS", tmp_path)

    with pytest.raises(LabError, match="5 MB are free"), kernels.held(kernels.SOURCES["6.12"]):
        pass


def test_apt_that_gets_nothing_is_told_in_its_own_words(tmp_path: Path) -> None:
    if not shutil.which("apt-get"):
        pytest.skip("this machine lacks: apt-get")
    apt = kernels._Apt(tmp_path, f"deb [trusted=yes] file:{tmp_path}/nothing sid main\n")

    with pytest.raises(LabError, match=r"apt-get update failed: .*nothing"):
        apt.run("update")


def test_what_is_missing_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm.shutil, "which", lambda tool, **_: None if "qemu" in tool else f"/usr/bin/{tool}")
    monkeypatch.setattr(vm, "_virtme", lambda: None)

    with pytest.raises(LabError, match=r"apt-get install qemu-system-x86 && pip install 'bpfpath_nb\[vm\]'"):
        vm.require()


@pytest.mark.parametrize("word", ["plain", "two words", "it's", 'a "b" $HOME `id` \\', "new\nline", "", "*", "-n", "é"])
def test_words_reach_the_command_as_they_are(word: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{word}:x", "SECRET": "no", "BPFPATH_X": word}
    show = "import os, sys; print([os.getcwd(), sys.argv[1:], dict(os.environ)])"
    folder = tmp_path / "it's a folder"
    folder.mkdir()

    script = vm.guest_command([sys.executable, "-ISc", show, word, "end"], environment, str(folder))
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)

    where, words, seen = eval(done.stdout)
    assert where == str(folder)
    assert words == [word, "end"]
    assert seen["BPFPATH_X"] == word
    assert seen["PYTHONPATH"] == f"{word}:x"
    assert "SECRET" not in seen
    assert seen["PATH"].split(":")[: len(os.environ["PATH"].split(":"))] == os.environ["PATH"].split(":")


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_a_stream_passes_every_byte_but_its_end(size: int) -> None:
    end = b"0123456789abcdef"
    content = bytes(range(256)) * 4 + end[:9] + b"\r\n" + end[:15] + b"x" + end[:3]
    reader, writer = os.pipe()
    stream = conversation.Stream(writer, end)

    sent = content + end
    for at in range(0, len(sent), size):
        assert not stream.ended
        stream.feed(sent[at : at + size])
    os.close(writer)

    with os.fdopen(reader, "rb") as file:
        assert file.read() == content
    assert stream.ended


def test_nothing_but_the_beginning_of_the_end_is_held_back() -> None:
    reader, writer = os.pipe()
    stream = conversation.Stream(writer, b"END")

    stream.feed(b"prompt> E")

    assert os.read(reader, 100) == b"prompt> "
    os.close(reader)
    os.close(writer)


def test_what_a_console_says_reaches_the_terminal_as_plain_text() -> None:
    with contextlib.ExitStack() as opened:
        ports = {name: opened.enter_context(socket.socketpair()[0]) for name in vm.PORTS}
        process = subprocess.Popen(["true"], stderr=subprocess.PIPE)
        talk = conversation.Conversation(process, ports, b"end", 0.0)
        talk._console.extend([b"\x1b[2Jkernel \x07panic\r\n", b"\n", b"\xff Rebooting\n"])

        assert talk._last_words() == "Its console said last:\n  kernel panic\n  Rebooting"
        process.communicate()


def test_paths_within_others_are_packed_once() -> None:
    paths = [Path(name) for name in ("/opt/env", "/opt/env/lib/python3.11", "/usr/lib/python3.11", "/usr", "/opt/env")]

    assert pack.outermost(paths) == ["/opt/env", "/usr/lib/python3.11"]


def test_a_fingerprint_changes_with_any_file_that_is_packed(tmp_path: Path) -> None:
    for name in ("a", "b/c", "left/out"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1234")
    left_out = [str(tmp_path / "left")]

    def now() -> tuple[str, int]:
        return pack.fingerprint([str(tmp_path)], left_out)

    before = now()
    (tmp_path / "left" / "out").write_text("12345")
    assert now() == before

    (tmp_path / "b" / "c").write_text("12345")
    changed = now()
    assert changed[0] != before[0]
    assert changed[1] == before[1] + 1

    os.utime(tmp_path / "a", (1, 1))
    assert now()[0] != changed[0]


def test_the_guest_is_a_script_that_a_shell_can_read() -> None:
    subprocess.run(["sh", "-n", ROOT / "bpfpath_nb" / "lab" / "guest.sh"], check=True)


@pytest.mark.parametrize("words", [["vm"], ["vm", "6.12"], ["vm", "6.12", "--"], ["vm", "6.12", "uname", "-r"]])
def test_a_command_line_without_kernel_dashes_and_command_is_a_mistake(words: list[str], cache: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "bpfpath_nb.cli", *words], cwd=ROOT, capture_output=True, check=False)

    assert done.returncode == 2
    assert b"usage: bpfpath vm" in done.stderr
    assert not cache.exists()


def test_an_unknown_kernel_is_one_paragraph(cache: Path) -> None:
    words = [sys.executable, "-m", "bpfpath_nb.cli", "vm", "2.6", "--", "true"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("bpfpath: there is no kernel '2.6' to be had; there are 5.10, 6.1, 6.12, sid.")
    assert not cache.exists()
