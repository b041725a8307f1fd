"""What the frames cost, from a hundred thousand hops to ten million, next to others' ways to the same.

    make bench

Each size is made by `tests/traffic.py` (some fifty hops a packet) and measured in processes of its own. Seconds are of
processor time, of all threads together, and of the quickest of as many runs as fit into a second, so that what else
runs on the machine counts for little. A rate is of the step alone: `df` from the file, `others` for reading those
columns that `df` does not need, every other frame from the columns in memory, with nothing kept of an earlier step.
Peak memory is what making `df`, packets, paths, functions and transitions one after another, and keeping them,
took beyond what the process had before the file was loaded, in units of what `df` itself takes.

The others do their part of the same recording in the same run, and what they find is held against ours. `pandas` is
what its documentation leads to: over `df`, one `groupby(...).apply(...)` for each frame, of a function that gets the
rows of a packet, a function or a step and returns its row of the frame; `Series.quantile` and the like do the work in
it. Compiled ways to parts of that (`groupby(...).quantile`, ranks, joins of codes) are faster, and no longer the
straightforward code; of the frame of functions, where that is easiest, they are shown too. `retis` is its package's own
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from traffic import recording as made_up

from bpfpath_nb.recording import Recording

PACKETS = (2_000, 20_000, 200_000)
BESIDE_OTHERS = 1  # of these sizes the one at which others are measured: they need a minute for it
RETIS_EVENTS = 100_000
COMPARED = ("packets", "paths", "functions", "transitions")
STEPS = (*COMPARED, "drops", "namespaces", "diagnose")
PERCENTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def nothing() -> None:
    """Most steps need no preparation."""


def timed(step: Callable[[Any], object], prepare: Callable[[], Any] = nothing) -> float:
    """Seconds that a step takes on what is prepared for each of its runs."""
    found: list[float] = []
    while sum(found) < 1:
        ground = prepare()
        begin = time.process_time()
        step(ground)
        found.append(time.process_time() - begin)
    return min(found)


def resident(kind: str) -> int:
    """Bytes of memory of this process: now (VmRSS), or at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise RuntimeError(kind)


def make(packets: int, path: Path) -> dict[str, float]:
    """Save so many packets; seconds and bytes per hop."""
    recording = made_up(packets)
    seconds = timed(lambda _: recording.save(path))
    return {"hops": len(recording), "save": seconds, "bytes": path.stat().st_size / len(recording)}


def ours(path: Path) -> dict[str, float]:
    """Seconds for each step of one recording, from its file on."""
    _ = Recording.load(path).df.iloc[:1]  # imports are not the subject

    def with_df() -> Recording:
        recording = Recording.load(path)
        frame(recording, "df")
        return recording

    found = {
        "load": timed(lambda _: Recording.load(path)),
        "df": timed(partial(frame, step="df"), partial(Recording.load, path)),
        "others": timed(lambda recording: replace(recording.events), with_df),
    }
    recording = with_df()
    for step in STEPS:
        found[step] = timed(partial(frame, step=step), lambda: Recording(replace(recording.events)))
    return found


def frame(recording: Recording, step: str) -> Any:
    """One of the frames, or the diagnosis."""
    found = getattr(recording, step)
    return found() if callable(found) else found


def memory(path: Path) -> float:
    """Peak memory of the frames, one after another, in sizes of `df`."""
    _ = Recording.load(path).df.iloc[:1]
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = resident("VmRSS")
    recording = Recording.load(path)
    for step in ("df", *COMPARED):
        frame(recording, step)
    peak = resident("VmHWM") - before
    own = recording.df.memory_usage(deep=False).sum() + sum(codes.nbytes for codes in recording.df.index.codes)
    return float(peak / own)


def plain_pandas(path: Path) -> dict[str, float]:
    """Seconds of plain pandas for the same frames."""
    recording = Recording.load(path)
    df = recording.df

    def packet(hops: pd.DataFrame) -> pd.Series:
        last = hops.iloc[-1]
        return pd.Series({
            "first": hops["time"].iloc[0], "last": last["time"], "total": last["since"], "hops": len(hops),
            "path": " > ".join(hops["func"]), "flow": hops["flow"].iloc[0], "netns": hops["netns"].iloc[0],
            "namespaces": " > ".join(hops["netns"].dropna().unique()), "reason": last["reason"],
            "verdict": "dropped" if last["func"] == "kfree_skb" else "delivered", "where": last["func"],
        })  # fmt: skip

    def packets() -> pd.DataFrame:
        return df.groupby(level="packet").apply(packet)

    def way(hops: pd.DataFrame) -> pd.Series:
        return pd.Series({"path": " > ".join(hops["func"]), "total": hops["since"].iloc[-1], "hops": len(hops)})

    def path_of(ways: pd.DataFrame) -> pd.Series:
        return pd.Series({
            "packets": len(ways), "hops": ways["hops"].iloc[0], "median": ways["total"].median(),
            "p99": ways["total"].quantile(0.99),
        })  # fmt: skip

    def paths() -> pd.DataFrame:
        return df.groupby(level="packet").apply(way).groupby("path").apply(path_of)

    def lasted(of: str, times: pd.Series) -> dict[str, Any]:
        found = {f"{of}{name}": times.quantile(part) for name, part in PERCENTS.items()}
        return found | {f"{of}max": times.max(), f"{of}total": times.sum()}

    def function(hops: pd.DataFrame) -> pd.Series:
        packets = hops.index.get_level_values("packet").nunique()
        row = {"layer": hops["layer"].iloc[0], "hits": len(hops), "packets": packets}
        return pd.Series(row | lasted("gap_", hops["gap"]) | lasted("duration_", hops["duration"]))

    def functions() -> pd.DataFrame:
        return df.groupby("func", observed=True).apply(function)

    def compiled_functions() -> pd.DataFrame:
        grouped = df.reset_index("packet").groupby("func", observed=True)
        found = {"layer": grouped["layer"].first(), "hits": grouped.size(), "packets": grouped["packet"].nunique()}
        for of in ("gap", "duration"):
            quantiles = grouped[of].quantile(list(PERCENTS.values())).unstack()
            found |= {f"{of}_{name}": quantiles[part] for name, part in PERCENTS.items()}
            found |= {f"{of}_max": grouped[of].max(), f"{of}_total": grouped[of].sum()}
        return pd.DataFrame(found)

    def transitions() -> pd.DataFrame:
        following = df.groupby(level="packet")["func"].apply(lambda func: func.astype(str).shift(-1))
        steps = pd.DataFrame({"from": df["func"].astype(str), "to": following.to_numpy(), "gap": df["gap"]}).dropna()
        return steps.groupby(["from", "to"]).apply(
            lambda hops: pd.Series({"count": len(hops)} | lasted("", hops["gap"]))
        )

    found: dict[str, float] = {}
    for name, task, same in (
        ("packets", packets, "hops"), ("paths", paths, "packets"), ("functions", functions, "gap_p90"),
        ("functions, compiled", compiled_functions, "gap_p90"), ("transitions", transitions, "p90"),
    ):  # fmt: skip
        made: list[pd.DataFrame] = []
        found[name] = timed(lambda _, task=task, made=made: made.append(task()))
        theirs = made[0]
        mine = getattr(recording, name.partition(",")[0])[same]
        apart_by = np.sort(mine.to_numpy()).astype("int64") - np.sort(theirs[same].to_numpy()).astype("int64")
        if len(mine) != len(theirs) or abs(apart_by).max() > 1:  # a quantile is rounded to one ns or the next
            raise AssertionError(f"plain pandas finds other {name} than the recording")
    return found


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
        return RETIS_EVENTS / timed(lambda _: [event.to_dict() for event in retis.EventFile(file.name).events()])


def apart(task: Callable[..., Any], *arguments: object) -> Any:
    """What a task returns, run in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(task, arguments)


def main() -> None:
    """Measure and print."""
    names = ("save", "load", "df", "others", *STEPS)
    print(
        "hops per second, in millions; a process of its own for each size; `all` is seconds from the file to all frames"
    )
    print(
        f"{'hops':>12s} "
        + " ".join(f"{name:>11s}" for name in (*names, "all"))
        + "   bytes/hop   peak memory / df's own"
    )
    with tempfile.TemporaryDirectory() as folder:
        for at, packets in enumerate(PACKETS):
            path = Path(folder) / f"{packets}.parquet"
            found = apart(make, packets, path)
            found |= apart(ours, path)
            peak = apart(memory, path)
            rates = " ".join(f"{found['hops'] / found[name] / 1e6:11.2f}" for name in names)
            total = sum(found[name] for name in names[1:])
            print(f"{int(found['hops']):12,d} {rates} {total:9.2f} s {found['bytes']:11.1f} {peak:11.2f}", flush=True)
            if at == BESIDE_OTHERS:
                beside, beside_path = found, path
        print(f"the same for {int(beside['hops']):,d} hops by plain pandas (groupby, apply)")
        theirs = apart(plain_pandas, beside_path)
        theirs["all"], beside["all"] = (sum(of[name] for name in COMPARED) for of in (theirs, beside))
        for name, seconds in theirs.items():
            rate, times = beside["hops"] / seconds / 1e6, seconds / beside[name.partition(",")[0]]
            print(f"  {name:20s} {rate:8.3f} million/s   ours is {times:7.1f} times that")
        rate = apart(retis_rate, beside_path)
        mine = beside["hops"] / (beside["load"] + beside["df"])
        print(f"from a file to something to work with, {RETIS_EVENTS:,d} events by the retis package's reader (dicts)")
        print(f"  {'retis':20s} {rate / 1e6:8.3f} million/s   ours (load, df) is {mine / rate:7.1f} times that")


if __name__ == "__main__":
    main()
