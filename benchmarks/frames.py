"""What the frames cost, from a hundred thousand hops to ten million, next to others' ways to the same.

    make bench

Each size is made by `tests/traffic.py` (some fifty hops a packet) and measured in a process of its own, so that its
peak memory is known: what the process took beyond what it had before the file was loaded, in units of what `df` itself
takes. A rate is of the step alone; what an earlier step left in memory is not made again.

The others do their part of the same recording in the same run. `pandas` is the plain way over `df`: `groupby` and
`apply` for packets and paths, `groupby` with `quantile` for functions and transitions. `retis` is its package's own
reader, from the same hops as its JSON lines (those sections that it writes for a tracked packet) to dicts; ours is from
the file to `df`.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from traffic import recording as made_up

from bpfpath_nb.recording import Recording

PACKETS = (2_000, 20_000, 200_000)
BESIDE_OTHERS = 1  # of these sizes the one at which others are measured: they need a minute for it
RETIS_EVENTS = 100_000
STEPS = ("df", "packets", "paths", "functions", "transitions")


def timed(step: Callable[[], object]) -> float:
    """Seconds that a step takes."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def resident(kind: str) -> int:
    """Bytes of memory of this process: now (VmRSS), or at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise RuntimeError(kind)


def make(packets: int, path: Path) -> dict[str, float]:
    """Save so many packets; seconds and bytes per hop."""
    recording = made_up(packets)
    seconds = timed(lambda: recording.save(path))
    return {"hops": len(recording), "save": seconds, "bytes": path.stat().st_size / len(recording)}


def ours(path: Path) -> dict[str, float]:
    """Seconds for each step of one recording, from its file on; peak memory in sizes of `df`."""
    _ = Recording.load(path).df.iloc[:1]  # imports are not the subject
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = resident("VmRSS")
    found = {}
    begin = time.perf_counter()
    recording = Recording.load(path)
    found["load"] = time.perf_counter() - begin
    for step in STEPS:
        found[step] = timed(partial(getattr, recording, step))
    peak = resident("VmHWM") - before
    own = recording.df.memory_usage(deep=False).sum() + sum(codes.nbytes for codes in recording.df.index.codes)
    return found | {"memory": peak / own}


def plain_pandas(path: Path) -> dict[str, float]:
    """Seconds of plain pandas for the same frames."""
    recording = Recording.load(path)
    df = recording.df
    end = recording.events.hops["flags"] & 2 != 0

    def packet(hops: pd.DataFrame) -> pd.Series:
        last = hops.iloc[-1]
        return pd.Series({
            "first": hops["time"].iloc[0], "last": last["time"], "total": last["since"], "hops": len(hops),
            "path": " > ".join(hops["func"]), "flow": hops["flow"].iloc[0],
            "namespaces": " > ".join(dict.fromkeys(hops["netns"])), "reason": last["reason"], "where": last["func"],
            "verdict": "dropped" if last["func"] == "kfree_skb" else "delivered" if hops["end"].any() else "unfinished",
        })  # fmt: skip

    def quantiles(gaps: pd.Series) -> pd.Series:
        return gaps.agg(
            ["count", lambda s: s.quantile(0.5), lambda s: s.quantile(0.9), lambda s: s.quantile(0.99), "max", "sum"]
        )

    marked = df.assign(end=end)
    found = {"packets": timed(lambda: marked.groupby(level="packet").apply(packet))}

    def paths() -> None:
        grouped = df.groupby(level="packet")
        table = pd.DataFrame({"path": grouped["func"].apply(" > ".join), "total": grouped["since"].max()})
        table.groupby("path")["total"].agg(["count", "median", lambda totals: totals.quantile(0.99)])

    def functions() -> None:
        numbered = df.reset_index("packet")
        grouped = numbered.groupby("func", observed=True)
        pd.DataFrame({"hits": grouped.size(), "packets": grouped["packet"].nunique()})
        grouped["gap"].apply(quantiles)

    def transitions() -> None:
        following = df.groupby(level="packet")["func"].apply(lambda func: func.astype(str).shift(-1))
        pairs = pd.DataFrame({"from": df["func"].astype(str), "to": following.to_numpy(), "gap": df["gap"]})
        pairs.dropna().groupby(["from", "to"])["gap"].apply(quantiles)

    return found | {"paths": timed(paths), "functions": timed(functions), "transitions": timed(transitions)}


def retis_rate(path: Path) -> float:
    """Events per second of the `retis` package's reader, to dicts."""
    import retis

    recording = Recording.load(path)
    df = recording.df.iloc[:RETIS_EVENTS]
    headers = base64.b64encode(bytes(recording.events.facts["headers"][0][:70])).decode()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        machine = {"kernel_release": "6.12.0", "kernel_version": "", "hardware_name": "x86_64"}
        startup = {
            "retis_version": "1.7.0",
            "cmdline": "",
            "clock_monotonic_offset": {"sec": 0, "nsec": 0},
            "machine": machine,
        }
        file.write(json.dumps({"startup": startup}) + "\n")
        columns = [df[name].astype(object).where(df[name].notna(), "").tolist() for name in (
            "func", "probe", "cpu", "pid", "comm", "skb", "netns_inum", "ifindex", "dev", "len")]  # fmt: skip
        for stamp, func, probe, cpu, pid, comm, skb, netns, ifindex, dev, length in zip(
            df["time"].astype("int64").tolist(), *columns, strict=True
        ):
            event: dict[str, Any] = {
                "common": {"timestamp": stamp, "smp_id": cpu, "task": {"pid": pid, "tgid": pid, "comm": comm}},
                "kernel": {"symbol": func, "probe_type": "kprobe" if probe == "kprobe" else "raw_tracepoint"},
                "skb-tracking": {"orig_head": skb, "timestamp": stamp, "skb": skb},
                "skb": {}, "netns": {"cookie": 1, "inum": netns}, "dev": {"name": dev, "ifindex": ifindex},
                "packet": {"len": length, "capture_len": 70, "data": headers},
            }  # fmt: skip
            file.write(json.dumps(event) + "\n")
        file.flush()
        begin = time.perf_counter()
        count = sum(1 for event in retis.EventFile(file.name).events() if event.to_dict())
        return (count - 1) / (time.perf_counter() - begin)


def apart(task: Callable[..., Any], *arguments: object) -> Any:
    """What a task returns, run in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(task, arguments)


def main() -> None:
    """Measure and print."""
    names = ("save", "load", *STEPS)
    print("hops per second, in millions; a process of its own for each size")
    print(f"{'hops':>12s} " + " ".join(f"{name:>11s}" for name in names) + "   bytes/hop   peak memory / df's own")
    with tempfile.TemporaryDirectory() as folder:
        for at, packets in enumerate(PACKETS):
            path = Path(folder) / f"{packets}.parquet"
            found = apart(make, packets, path)
            found |= apart(ours, path)
            rates = " ".join(f"{found['hops'] / found[name] / 1e6:11.2f}" for name in names)
            print(f"{int(found['hops']):12,d} {rates} {found['bytes']:11.1f} {found['memory']:11.2f}", flush=True)
            if at == BESIDE_OTHERS:
                beside, beside_path = found, path
        print(f"the same for {int(beside['hops']):,d} hops by plain pandas (groupby, apply)")
        theirs = apart(plain_pandas, beside_path)
        for name, seconds in theirs.items():
            rate = beside["hops"] / seconds / 1e6
            print(f"  {name:12s} {rate:8.3f} million/s   ours is {seconds / beside[name]:7.1f} times that")
        together = sum(theirs.values())
        times = together / sum(beside[name] for name in theirs)
        rate = beside["hops"] / together / 1e6
        print(f"  {'all':12s} {rate:8.3f} million/s   ours is {times:7.1f} times that")
        rate = apart(retis_rate, beside_path)
        mine = beside["hops"] / (beside["load"] + beside["df"])
        print(f"from a file to something to work with, {RETIS_EVENTS:,d} events by the retis package's reader (dicts)")
        print(f"  {'retis':12s} {rate / 1e6:8.3f} million/s   ours (load, df) is {mine / rate:7.1f} times that")


if __name__ == "__main__":
    main()
