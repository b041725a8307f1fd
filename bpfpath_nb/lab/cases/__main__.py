"""Record every case once: `sudo python -m bpfpath_nb.lab.cases OUT.parquet [NAME ...]`.

Beside the recording stands OUT.json: by each case's name when it began and ended, in ns since 1970, to be compared with
`first` of the frame of packets.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from bpfpath_nb.capture import Capture
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.cases import CASES, FILTER, provoked


def main() -> None:
    """Provoke the cases in a lab of their own, and save what a capture saw."""
    parser = argparse.ArgumentParser(prog="python -m bpfpath_nb.lab.cases", description=__doc__)
    parser.add_argument("out", type=Path, help="the recording, a Parquet file")
    parser.add_argument("names", nargs="*", choices=[[], *CASES], help="which cases; by default all")
    parser.add_argument("--whole-machine", action="store_true", help="also those that change what all namespaces share")
    parser.add_argument(
        "--settle", type=float, default=0.5, help="seconds before the end; an emulated machine needs more"
    )
    parser.add_argument(
        "--events-ring", type=int, default=1 << 24, help="bytes; a small one makes the capture lose events"
    )
    options = parser.parse_args()
    names = options.names or [n for n, case in CASES.items() if options.whole_machine or not case.whole_machine]
    failed: dict[str, Exception] = {}
    with Lab() as lab, Capture(FILTER, namespaces=list(lab.names.values()), events_ring=options.events_ring) as capture:
        with provoked(lab, [CASES[name] for name in names], failed) as windows:
            time.sleep(options.settle)
            capture.stop()
        recording = capture.recording
    recording.save(options.out)
    shift = recording.start.realtime - recording.start.monotonic
    told = {name: [begin + shift, end + shift] for name, (begin, end) in windows.items() if name not in failed}
    options.out.with_suffix(".json").write_text(json.dumps(told, indent=0) + "\n")
    print(recording)
    for name, error in failed.items():
        print(f"could not be provoked here: {name}: {error}")


if __name__ == "__main__":
    main()
