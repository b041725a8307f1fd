"""The tracer started in other ways: through sudo for an ordinary user, through a real sshd; and what is missing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from processes import is_there, programs, soon, status, tracer_of

from bpfpath_nb import Capture, tracers
from bpfpath_nb.errors import HostError, NamespaceError, RequirementError, TracerError
from bpfpath_nb.lab import Lab
from bpfpath_nb.tracer.syscall import program_ids

NOBODY = "65534"
SEND = "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', (sys.argv[1], 6100))"

NOTEBOOK = """
import sys, time
from bpfpath_nb import Capture, tracers
from bpfpath_nb.errors import BpfpathError
try:
    cap = Capture("udp port 6100")
except BpfpathError as error:
    print(type(error).__name__, error)
    sys.exit(3)
print("armed", flush=True)
sys.stdin.readline()
time.sleep(0.3)
cap.stop()
print(cap.packets["reason"].tolist(), flush=True)
"""


def as_nobody(code: str, sudoers: str, folder: Path) -> subprocess.Popen[str]:
    """Run Python as an ordinary user, with these rules for sudo and no others.

    The user may read every file (CAP_DAC_READ_SEARCH), since the interpreter may lie in root's home. The rules lie over
    /etc/sudoers.d in a mount namespace of the process's own.
    """
    rules = folder / "sudoers.d"
    rules.mkdir()
    (rules / "test").write_text(sudoers)
    (rules / "test").chmod(0o440)
    script = f"mount --bind {rules} /etc/sudoers.d && exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "
    script += '--inh-caps=+dac_read_search --ambient-caps=+dac_read_search "$@"'
    return subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def test_an_ordinary_user_without_sudo_is_told_the_ways_out(tmp_path: Path) -> None:
    out, errors = as_nobody(NOTEBOOK, "", tmp_path).communicate(timeout=60)

    assert out.startswith("PrivilegeError"), (out, errors)
    for way in ("as root", "/etc/sudoers.d/bpfpath", "ssh://root@host"):
        assert way in out


def test_an_ordinary_user_whom_sudo_allows_the_tracer(tmp_path: Path, lab: Lab) -> None:
    rule = f"nobody ALL=(root) NOPASSWD: {sys.executable} -P -m bpfpath_nb.tracer\n"
    process = as_nobody(NOTEBOOK, rule, tmp_path)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first == "armed\n", process.communicate(timeout=10)
    lab.run("client", ["python3", "-c", SEND, lab.address("router")])
    out, errors = process.communicate("\n", timeout=30)
    assert out.strip() == "['NO_SOCKET']", errors


def test_an_ordinary_users_notebook_is_killed(tmp_path: Path) -> None:
    rule = f"nobody ALL=(root) NOPASSWD: {sys.executable} -P -m bpfpath_nb.tracer\n"
    process = as_nobody(NOTEBOOK, rule, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "armed\n"
    # sudo cleans the environment, so the fixture takes its tracer for somebody else's: it is followed by its number.
    tracer = tracer_of(process.pid)
    assert tracer != process.pid
    own = programs(tracer)
    assert own
    process.kill()
    process.communicate(timeout=10)
    assert soon(lambda: not is_there(tracer)), "the tracer stays"
    assert soon(lambda: not own & set(program_ids())), "its programs stay"


def test_an_ordinary_users_stopped_tracer_goes_too(tmp_path: Path) -> None:
    """The user cannot kill it; its watchdog can, whatever state it is in."""
    rule = f"nobody ALL=(root) NOPASSWD: {sys.executable} -P -m bpfpath_nb.tracer\n"
    process = as_nobody(NOTEBOOK, rule, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "armed\n"
    tracer = tracer_of(process.pid)
    os.kill(tracer, signal.SIGSTOP)
    try:
        started = time.monotonic()
        _, errors = process.communicate("\n", timeout=60)  # it stops the capture
        assert time.monotonic() - started < 40, "stop() has a bound"
        assert process.returncode == 0, errors
        assert soon(lambda: not is_there(tracer)), "the tracer stays"
    finally:
        if is_there(tracer):
            os.kill(tracer, signal.SIGKILL)


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real sshd on loopback, and an ssh that knows it; the URL of root there."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "authorized").write_text((tmp_path / "user.pub").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = f"""
        ListenAddress 127.0.0.1
        Port {port}
        HostKey {tmp_path}/host
        AuthorizedKeysFile {tmp_path}/authorized
        PidFile none
        StrictModes no
        UsePAM no
        PermitRootLogin prohibit-password
    """
    (tmp_path / "sshd_config").write_text(textwrap.dedent(config))
    client = f"""
        Host 127.0.0.1
            IdentityFile {tmp_path}/user
            UserKnownHostsFile {tmp_path}/known
            StrictHostKeyChecking accept-new
    """
    (tmp_path / "ssh_config").write_text(textwrap.dedent(client))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/ssh_config "$@"\n')
    (bin_ / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.PIPE)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"ssh://root@127.0.0.1:{port}?python={quote(sys.executable)}"
    tracers.close_idle()  # its connection would keep the server waiting
    server.terminate()
    server.communicate(timeout=10)


def test_another_host_over_ssh(sshd: str, lab: Lab) -> None:
    with Capture("udp port 6100", on=sshd) as cap:
        tracer = newest_tracer()
        assert programs(tracer)
        lab.run("client", ["python3", "-c", SEND, lab.address("router")])
        time.sleep(0.5)
    assert cap.packets["reason"].tolist() == ["NO_SOCKET"]
    assert cap.quality["end"] == "stopped"
    assert programs(tracer) == set()
    tracers.close_idle()
    assert soon(lambda: not is_there(tracer)), "the tracer stays on that host"


def test_the_connection_to_another_host_breaks(sshd: str) -> None:
    cap = Capture("udp port 6100", on=sshd)
    tracer = newest_tracer()
    own = programs(tracer)
    assert own
    assert cap._tracer is not None
    os.kill(cap._tracer.pid, signal.SIGKILL)  # the ssh here
    with pytest.raises(TracerError, match="kept"):
        cap.wait(seconds=10)
    cap.stop()
    assert soon(lambda: not is_there(tracer)), "the tracer stays on that host"
    assert soon(lambda: not own & set(program_ids())), "its programs stay"


def newest_tracer() -> int:
    """The tracer that began last; it has a watchdog below it, with the same command line."""
    found = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and is_there(int(folder.name)) and b"bpfpath_nb.tracer" in command_line(folder)
    ]
    return max((pid for pid in found if programs(pid)), key=lambda pid: int(status(pid)[19]))


def command_line(folder: Path) -> bytes:
    with suppress(OSError):
        return (folder / "cmdline").read_bytes()
    return b""


def test_bad_input_is_refused_over_ssh_as_it_is_here(sshd: str) -> None:
    with pytest.raises(NamespaceError, match="no-such-namespace"):
        Capture("udp", on=sshd, namespaces=["no-such-namespace"])


def test_a_host_without_bpfpath_nb(sshd: str) -> None:
    with pytest.raises(HostError, match="bpfpath_nb"):
        Capture("udp", on=sshd.split("?", maxsplit=1)[0] + "?python=/usr/bin/false")


def test_a_host_that_does_not_answer() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(HostError, match=r"(?i)refused|closed"):
            Capture("udp", on=f"ssh://root@127.0.0.1:{closed.getsockname()[1]}")


def test_no_bcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tracers.close_idle()
    monkeypatch.setenv("BPFPATH_BCC", str(tmp_path))
    with pytest.raises(RequirementError, match="python3-bpfcc"):
        Capture("udp")
    tracers.close_idle()


def test_no_btf() -> None:
    """In a mount namespace of its own, where /sys/kernel/btf is empty."""
    code = "from bpfpath_nb import Capture\nfrom bpfpath_nb.errors import RequirementError\n"
    code += "try: Capture('udp')\nexcept RequirementError as error: print(error)"
    hidden = 'mount -t tmpfs none /sys/kernel/btf && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", hidden, "sh", sys.executable, "-c", code]
    environment = {**os.environ, "XDG_CACHE_HOME": "/nonexistent"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert "BTF" in run.stdout, run.stderr
    assert "CONFIG_DEBUG_INFO_BTF" in run.stdout
