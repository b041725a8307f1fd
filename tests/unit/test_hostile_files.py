"""Files that somebody damaged or made on purpose: a typed error, within bounds of time and memory, or the truth.

Real files are changed at random, in a process of its own whose memory and time are limited: Parquet of each version,
and the file of a capture that runs. What loads nevertheless must be what was saved.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streams import capture

from bpfpath_nb import samples
from bpfpath_nb.errors import RecordingError
from bpfpath_nb.io.live import LiveFile
from bpfpath_nb.io.parquet import _digest
from bpfpath_nb.recording import Recording

TESTS = Path(__file__).parents[1]
ROUNDS = 40

MUTATE = """
import random, resource, signal, sys
from pathlib import Path
from bpfpath_nb.errors import RecordingError
from bpfpath_nb.recording import Recording

path, rounds, scratch = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
whole, data = Recording.load(path), path.read_bytes()

def rows(recording):
    return {name: values.tobytes() for name, values in recording.events.hops.items()}

truth = rows(whole)
used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
signal.alarm(100)
random.seed(5)
footer = int.from_bytes(data[-8:-4], "little") if data[:4] == b"PAR1" else len(data) // 20
refused = 0
for turn in range(rounds):
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        last = turn % 2 and data[:4] == b"PAR1"
        at = len(data) - 8 - random.randrange(footer) if last else random.randrange(len(data))
        changed[at - 1] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)])
    if turn % 5 == 4:
        del changed[random.randrange(8, len(changed)):]
    if turn % 7 == 6:
        at = random.randrange(len(changed))
        changed[at:at] = changed[max(0, at - 300):at]
    scratch.write_bytes(changed)
    try:
        loaded = Recording.load(scratch)
        found = rows(loaded), loaded.df, loaded.packets  # columns are read, and checked, when they are asked for
    except RecordingError:
        refused += 1
        continue
    if data[:4] == b"PAR1":
        assert found[0] == truth, turn
    else:
        assert len(loaded) == len(whole) or loaded.quality["end"] == "broken off", turn
        names = ("time", "packet", "func", "seq", "cpu")
        known, seen = (set(zip(*(r.events.hops[n].tolist() for n in names))) for r in (whole, loaded))
        assert known >= seen
print(refused)
"""


def live_file(path: Path) -> Path:
    file = LiveFile(path)
    stream = capture(200).write(batches=6)
    for at in range(0, len(stream), 1500):
        file.write(stream[at : at + 1500])
    file.show()
    file.close()
    return path


FILES = {
    **{f"version {number}": TESTS / f"recordings/version{number}.parquet" for number in (1, 2)},
    **{f"sample {name}": Path(samples.__file__).with_name(f"{name}.parquet") for name in samples.SAMPLES},
}


@pytest.mark.parametrize("which", [*FILES, "running"])
def test_a_changed_file_is_refused_or_the_truth(which: str, tmp_path: Path) -> None:
    path = live_file(tmp_path / "live") if which == "running" else FILES[which]

    done = subprocess.run(
        [sys.executable, "-c", MUTATE, str(path), str(ROUNDS), str(tmp_path / "x")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > ROUNDS // 3


def test_a_small_file_does_not_unfold_to_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq.read_table(capture(5).recording().save(tmp_path / "x"))
    rows = 100_000
    columns = {
        name: pa.nulls(rows, values.type) for name, values in zip(table.column_names, table.columns, strict=True)
    }
    text = json.dumps(json.loads(table.schema.metadata[b"bpfpath_nb"]) | {"rows": rows}).encode()
    many = pa.table(columns).replace_schema_metadata({b"bpfpath_nb": text, b"bpfpath_nb.digest": _digest(text)})
    pq.write_table(many, tmp_path / "y", compression="zstd")
    assert (tmp_path / "y").stat().st_size < rows
    monkeypatch.setattr("bpfpath_nb.io.parquet._ROWS_PER_BYTE", 1)

    with pytest.raises(RecordingError, match="more hops than fit"):
        Recording.load(tmp_path / "y")
