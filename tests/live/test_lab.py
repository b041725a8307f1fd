"""The practice network, built for real: it works, and it goes however its user ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfpath_nb.errors import LabError, PrivilegeError
from bpfpath_nb.lab import Lab, ledger

ROOT = Path(__file__).parents[2]


def namespaces() -> set[str]:
    return {path.name for path in ledger.NETNS.iterdir()} if ledger.NETNS.is_dir() else set()


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def dig(lab: Lab, server: str, *words: str) -> subprocess.CompletedProcess[str]:
    return lab.run("client", ["dig", "+short", "+time=1", "+tries=1", f"@{server}", *words])


@pytest.fixture
def foreign(lab_prefix: str) -> Iterator[str]:
    """A network namespace that no lab made, under the name that a lab's client would get."""
    name = f"{lab_prefix}client"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.parametrize("family", [4, 6])
def test_real_name_server_answers_across_the_router(lab: Lab, family: int) -> None:
    server = lab.address("server", family)

    assert dig(lab, server, "www.example.test", "A").stdout == "10.0.2.2\n"
    assert dig(lab, server, "www.example.test", "AAAA").stdout == "fd00:2::2\n"
    assert dig(lab, server, "client.example.test", "A").stdout == lab.address("client") + "\n"


def test_it_is_there_within_a_second(lab_prefix: str) -> None:
    times = []
    for _ in range(3):  # the machine may be busy with something else for once
        start = time.monotonic()
        lab = Lab.dns(prefix=lab_prefix)
        times.append(time.monotonic() - start)
        lab.close()

    assert min(times) < 1.0


def test_packets_are_dropped_while_the_rule_stands(lab: Lab) -> None:
    with lab.drop("router", "udp dport 53") as rule:
        assert "timed out" in dig(lab, "10.0.2.2", "www.example.test").stdout
        assert rule.packets == 1
    assert dig(lab, "10.0.2.2", "www.example.test").stdout == "10.0.2.2\n"
    assert rule.packets == 1
    assert "removed" in repr(rule)


def test_removing_one_rule_leaves_the_other(lab: Lab) -> None:
    ipv4 = lab.drop("router", "ip daddr 10.0.2.2 udp dport 53")
    ipv6 = lab.drop("router", "ip6 daddr fd00:2::2 udp dport 53")
    ipv4.remove()

    assert dig(lab, "10.0.2.2", "www.example.test", "A").stdout == "10.0.2.2\n"
    assert "timed out" in dig(lab, "fd00:2::2", "www.example.test").stdout
    assert (ipv4.packets, ipv6.packets) == (0, 1)


def test_ends_drop_on_input(lab: Lab) -> None:
    with lab.drop("server", "udp dport 53") as rule:
        dig(lab, "10.0.2.2", "www.example.test")
        assert (rule.hook, rule.packets) == ("input", 1)


def test_nobody_listens_on_the_router(lab: Lab) -> None:
    assert "connection refused" in dig(lab, lab.address("router"), "www.example.test").stdout


def test_a_longer_chain_is_crossed(lab_prefix: str) -> None:
    chain = [f"n{i}" for i in range(6)]
    with Lab(chain, prefix=lab_prefix) as lab:
        for family in (4, 6):
            ping = lab.run("n0", ["ping", "-c1", "-W2", lab.address("n5", family)])
            assert "ttl=60" in ping.stdout


def test_two_labs_side_by_side(lab: Lab, lab_prefix: str) -> None:
    with Lab(("client", "server"), prefix=lab_prefix + "b-") as other:
        assert other.run("client", "ping -c1 -W2 10.0.1.2").returncode == 0
        assert set(lab.names.values()) | set(other.names.values()) <= namespaces()
    assert set(lab.names.values()) <= namespaces()
    assert not set(other.names.values()) & namespaces()


def test_a_cell_can_be_run_again(lab_prefix: str) -> None:
    first = Lab(("a", "b"), prefix=lab_prefix)
    second = Lab(("a", "b"), prefix=lab_prefix)

    assert (first.closed, second.closed) == (True, False)
    second.close()


def test_a_forgotten_lab_goes(lab_prefix: str) -> None:
    lab = Lab(("a", "b"), prefix=lab_prefix)
    names = set(lab.names.values())
    assert names <= namespaces()

    del lab

    assert not names & namespaces()


def test_what_was_started_ends_with_the_lab(lab_prefix: str) -> None:
    lab = Lab(("a", "b"), prefix=lab_prefix)
    polite = lab.popen("a", ["sleep", "300"])
    deaf = lab.popen("b", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"], stdout=subprocess.PIPE)
    assert deaf.stdout is not None
    deaf.stdout.readline()

    lab.close()
    lab.close()

    deaf.stdout.close()
    assert (polite.returncode, deaf.returncode) == (-signal.SIGTERM, -signal.SIGKILL)
    assert lab.closed
    assert "closed" in repr(lab)
    with pytest.raises(LabError, match="is closed"):
        lab.run("a", "true")


def test_a_namespace_of_that_name_is_left_alone(foreign: str, lab_prefix: str) -> None:
    inode = (ledger.NETNS / foreign).stat().st_ino

    with pytest.raises(LabError, match=f"ip netns del {foreign}"):
        Lab(prefix=lab_prefix)

    assert (ledger.NETNS / foreign).stat().st_ino == inode
    assert f"{lab_prefix}router" not in namespaces()


# A user's process that ends in every way there is.

USER = """
import sys, time, os, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored
from bpfpath_nb.lab import Lab
lab = Lab.dns(prefix=sys.argv[1])
running = lab.popen("server", ["sleep", "300"])
{more}
print(lab._keeper.pid, running.pid, flush=True)
time.sleep(300)
"""


def start_user(prefix: str, more: str = "") -> tuple[subprocess.Popen[str], int, int]:
    user = subprocess.Popen(
        [sys.executable, "-c", USER.format(more=more), prefix], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert user.stdout is not None
    keeper, running = map(int, user.stdout.readline().split())
    user.stdout.close()
    return user, keeper, running


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_nothing_stays_when_the_user_is_killed(lab_prefix: str, number: signal.Signals) -> None:
    user, keeper, running = start_user(lab_prefix, "sys.stderr = open(os.devnull, 'w')")
    assert f"{lab_prefix}router" in namespaces()

    user.send_signal(number)
    assert user.wait(60) != 0

    assert wait_until(lambda: not any(name.startswith(lab_prefix) for name in namespaces()))
    assert wait_until(lambda: not alive(keeper) and not alive(running))


def test_nothing_stays_when_a_fork_holds_the_pipe_open(lab_prefix: str) -> None:
    fork = "child = os.fork()\nif not child: os.closerange(1, 3); time.sleep(4); os._exit(0)"
    user, keeper, running = start_user(lab_prefix, fork)

    user.kill()
    user.wait()

    assert wait_until(lambda: not any(name.startswith(lab_prefix) for name in namespaces()), 3.0)
    assert wait_until(lambda: not alive(keeper) and not alive(running))


def test_a_thread_that_made_a_lab_may_end(lab_prefix: str) -> None:
    from threading import Thread

    made: list[Lab] = []
    thread = Thread(target=lambda: made.append(Lab(("a", "b"), prefix=lab_prefix)))
    thread.start()
    thread.join()
    time.sleep(0.3)

    assert made[0].run("a", "ping -c1 -W2 10.0.1.2").returncode == 0
    made.pop().close()


@pytest.fixture
def orphaned(lab_prefix: str) -> Iterator[tuple[str, int]]:
    """What is left when the keeper is killed and then its user: prefix and a process that ran in the lab."""
    user, keeper, running = start_user(lab_prefix)
    os.kill(keeper, signal.SIGKILL)
    user.kill()
    user.wait()
    assert wait_until(lambda: not alive(keeper))
    assert alive(running)
    assert f"{lab_prefix}router" in namespaces()
    yield lab_prefix, running
    ledger.sweep()


def test_the_next_lab_removes_what_a_killed_keeper_left(orphaned: tuple[str, int], lab: Lab) -> None:
    prefix, running = orphaned

    assert not any(name.startswith(prefix) for name in namespaces() - set(lab.names.values()))
    assert not alive(running)


def test_and_nothing_else(orphaned: tuple[str, int], lab_prefix: str) -> None:
    name = f"{orphaned[0]}router"
    subprocess.run(["ip", "netns", "del", name], check=True)
    subprocess.run(["ip", "netns", "add", name], check=True)  # someone else's now, though the ledger has its name

    gone = ledger.sweep()

    stays = name in namespaces()
    subprocess.run(["ip", "netns", "del", name], check=True)
    assert stays
    assert set(gone) == {f"{orphaned[0]}client", f"{orphaned[0]}server"}


def test_a_living_lab_is_not_swept(lab: Lab) -> None:
    assert ledger.sweep() == []
    assert dig(lab, "10.0.2.2", "www.example.test", "A").stdout == "10.0.2.2\n"


def test_a_damaged_ledger_file_is_removed() -> None:
    ledger.FOLDER.mkdir(exist_ok=True)
    path = ledger.FOLDER / "lab-damaged.json"
    path.write_text('{"lab": "dama')

    assert ledger.sweep() == []
    assert not path.exists()


def test_the_user_notices_a_killed_keeper(lab_prefix: str) -> None:
    lab = Lab.dns(prefix=lab_prefix)
    lab._keeper.kill()
    lab._keeper.wait()

    with pytest.raises(LabError, match="is closed"):
        lab.run("client", "true")
    lab.close()

    assert not set(lab.names.values()) & namespaces()


def test_mistakes_are_named(lab: Lab) -> None:
    with pytest.raises(LabError, match="'klient' is not in this lab, which has 'client', 'router', 'server'"):
        lab.run("klient", "true")
    with pytest.raises(LabError, match="'no-such-tool' was not found"):
        lab.run("client", "no-such-tool")
    with pytest.raises(LabError, match=r"did not end within 0.2 s"):
        lab.run("client", "sleep 60", timeout=0.2)
    with pytest.raises(LabError, match="nftables refused 'udp dport fiftythree'"):
        lab.drop("router", "udp dport fiftythree")
    with pytest.raises(LabError, match="its neighbours are 'router'"):
        lab.address("client", towards="server")


def test_a_missing_tool_names_its_package(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(LabError, match=r"apt-get install tcpdump|apt-get install iperf3"):
        lab.run("client", "tcpdump" if not Path("/usr/sbin/tcpdump").exists() else "iperf3")


def test_plain_users_are_told_what_to_do() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(PrivilegeError, match="sudo"):
            Lab()
    finally:
        os.seteuid(0)


def test_a_name_server_that_cannot_start_says_why(
    lab_prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing = tmp_path / "dnsmasq"
    failing.write_text("#!/bin/sh\necho 'dnsmasq: no luck today' >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(LabError, match="no luck today"):
        Lab.dns(prefix=lab_prefix)

    assert not any(name.startswith(lab_prefix) for name in namespaces())


def test_no_solicitations_between_the_users_packets(lab: Lab) -> None:
    shown = json.loads(lab.run("client", "ip -json -6 addr show dev eth0").stdout)
    assert not [address for address in shown[0]["addr_info"] if address.get("tentative")]
    assert lab.run("client", "cat /proc/sys/net/ipv6/conf/eth0/accept_ra").stdout == "0\n"
