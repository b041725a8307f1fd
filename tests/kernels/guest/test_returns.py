"""Durations and depths on stock kernels: on every rung, and beside what ftrace's function_graph says."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from bpfpath_nb import Capture, tracers
from bpfpath_nb.errors import RequirementError
from bpfpath_nb.tracer.probes import FREED

VERSION = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
TRACEFS = Path("/sys/kernel/tracing")
SEND = (
    "import socket, sys; r = socket.socket(type=socket.SOCK_DGRAM); r.bind(('127.0.0.1', int(sys.argv[1]))); "
    "s = socket.socket(type=socket.SOCK_DGRAM); "
    "[(s.sendto(b'x' * 10, ('127.0.0.1', int(sys.argv[1]))), r.recv(99)) for _ in range(int(sys.argv[2]))]"
)
FUNCTIONS = [
    "ip_send_skb", "ip_output", "ip_finish_output2", "__dev_queue_xmit", "dev_hard_start_xmit", "loopback_xmit",
    "ip_rcv", "ip_local_deliver", "udp_rcv", "__udp_enqueue_schedule_skb",
]  # fmt: skip


def send(port: int, count: int = 1) -> None:
    subprocess.run(["/usr/bin/python3", "-S", "-c", SEND, str(port), str(count)], check=True, timeout=120)


def captured(port: int, count: int, functions: str | list[str] = "default") -> Capture:
    with Capture(f"udp port {port}", functions=functions, returns=True, timeout=600) as cap:
        send(port, count)
        deadline = time.monotonic() + 20
        while (cap.packets["verdict"] == "delivered").sum() < count and time.monotonic() < deadline:
            time.sleep(0.2)
    return cap


@pytest.fixture
def rung(request: pytest.FixtureRequest) -> Iterator[str]:
    """The highest rung that tracers may try, for a tracer of this test's own."""
    tracers.close_idle()
    os.environ["BPFPATH_KPROBES"] = request.param
    yield request.param
    del os.environ["BPFPATH_KPROBES"]
    tracers.close_idle()


def check(cap: Capture) -> pd.DataFrame:
    df = cap.df
    probed = df[(df["probe"] == "kprobe") & (df["func"] != FREED)]  # a packet's end has no duration
    known = probed["duration"].notna()
    print(cap.quality[["ladder", "returns_lost", "hops"]].to_dict(), f"{known.mean():.3f} of the returns")
    one = df.loc[df.index[0][0]]
    print(one[["since", "duration", "depth", "func", "cpu", "pid"]].to_string())
    assert known.mean() > 0.98
    assert cap.quality["returns_lost"] <= (~known).sum()
    assert (probed.loc[known, "duration"] > pd.Timedelta(0)).all()
    return df


LOWER = [pytest.param(rung, marks=pytest.mark.only("6.12")) for rung in ("kprobe.multi", "kprobe")]


@pytest.mark.parametrize("rung", ["", *LOWER], indirect=True)
def test_every_rung(rung: str) -> None:
    if VERSION < (5, 15):
        with pytest.raises(RequirementError, match=r"5\.15"):
            captured(7800, 1)
        return
    best = "kprobe.session" if VERSION >= (6, 10) else "kprobe, kretprobe"
    multi = "kprobe.multi, kretprobe.multi" if VERSION >= (6, 10) else "kprobe, kretprobe"
    cap = captured(7800, 5)
    df = check(cap)
    expected = {"": best, "kprobe.multi": multi, "kprobe": "kprobe, kretprobe"}[rung]
    assert f"functions {expected}, tc" in cap.quality["ladder"]
    # What is called within another is within it in time too.
    for packet in df.index.unique("packet"):
        hops = df.loc[packet]
        hops = hops[hops["duration"].notna()]
        deepest = hops[hops["depth"] > 0]
        assert len(deepest) > 5
        for _, hop in deepest.iterrows():
            around = (hops["time"] <= hop["time"]) & (hops["time"] + hops["duration"] >= hop["time"] + hop["duration"])
            assert around.sum() > hop["depth"], hop


def graph(port: int, functions: list[str]) -> list[list[tuple[int, str, float]]]:
    """What function_graph shows of these functions while datagrams are sent: per packet (depth, function, us)."""
    if not (TRACEFS / "trace").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACEFS)], check=True)

    def write(name: str, text: str) -> None:
        (TRACEFS / name).write_text(text)

    write("current_tracer", "nop")
    write("set_ftrace_filter", "\n".join(functions) + "\n")
    write("current_tracer", "function_graph")
    write("options/funcgraph-overhead", "0")
    write("options/funcgraph-proc", "1")
    write("options/funcgraph-tail", "1")
    write("trace", "\n")
    write("tracing_on", "1")
    send(port, 3)
    write("tracing_on", "0")
    text = (TRACEFS / "trace").read_text()
    write("current_tracer", "nop")
    write("set_ftrace_filter", "\n")
    print(text)
    calls: list[tuple[int, str, float]] = []
    open_calls: list[int] = []
    for line in text.splitlines():
        told = re.match(r"\s*\d+\)\s+(\S+)-\d+\s*\|\s+(?:([0-9.]+) us)?\s*\|\s*(.*)", line)
        if not told or "python" not in told[1]:
            continue
        lasted, what = told[2], told[3].strip()
        if what.startswith("}"):
            at = open_calls.pop()
            calls[at] = (*calls[at][:2], float(lasted))
        elif "(" in what:
            calls.append((len(open_calls), what.split("(", 1)[0].split(" ")[0], float(lasted or 0)))
            if what.endswith("{"):
                open_calls.append(len(calls) - 1)
    starts = [at for at, (_, name, _) in enumerate(calls) if name == "ip_send_skb"] + [len(calls)]
    return [calls[begin:end] for begin, end in pairwise(starts)]


@pytest.mark.only("6.12")
def test_depths_and_durations_are_those_of_function_graph() -> None:
    df = check(cap := captured(7801, 3, FUNCTIONS))
    theirs = graph(7801, FUNCTIONS)
    assert len(theirs) == len(cap.packets) == 3
    for packet, shown in zip(cap.packets.index, theirs, strict=True):
        hops = df.loc[packet]
        hops = hops[hops["probe"] == "kprobe"]
        calls = list(zip(hops["depth"].tolist(), hops["func"].astype(str), strict=True))
        calls = [(depth, name) for depth, name in calls if name in FUNCTIONS]
        assert calls == [(depth, name) for depth, name, _ in shown]
    # Both measure with the cost of their own probes within; of nested calls the outermost has most of it. The shortest
    # of the three is the one in which the emulator did least else.
    ours = df["duration"].dropna().groupby(df["func"].astype(str)).min() / pd.Timedelta("1us")
    shortest = pd.DataFrame([call for shown in theirs for call in shown], columns=["depth", "func", "lasted"])
    shortest = shortest.groupby("func")["lasted"].min()
    assert len(shortest) > 3
    for name, lasted in shortest.items():
        print(f"{name:30} {ours[name]:10.1f} us here, {lasted:10.1f} us by function_graph")
        assert ours[name] < 20 * lasted + 500
        assert lasted < 20 * ours[name] + 500
