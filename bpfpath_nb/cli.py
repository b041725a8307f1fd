"""`bpfpath` on a shell: `bpfpath FILTER` prints packets and their paths as they end, `bpfpath doctor` the state of
the machine, `bpfpath vm KERNEL -- COMMAND` runs a command on another kernel.

A thin layer over `Capture`, `Recording` and `doctor`: options in, text out. Errors of ours are one paragraph on
standard error and exit status 1, mistakes on the command line exit status 2, as argparse does it. What is printed is
meant for people; for programs there is `-o`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bpfpath_nb.errors import BpfpathError, FilterError, NotebookError
from bpfpath_nb.options import add_capture_options, capture_arguments
from bpfpath_nb.version import __version__

if TYPE_CHECKING:
    from bpfpath_nb.capture import Capture
    from bpfpath_nb.recording import Recording

_EXAMPLES = """
examples:
  bpfpath 'udp port 53'                    until Ctrl-C
  bpfpath 'tcp port 443' -d 10 -o tls.parquet
  bpfpath icmp -c 4                        four packets, then end
  bpfpath doctor                           what works on this machine, and what mends the rest
  bpfpath check-notebook case.ipynb        whether all of a saved notebook can be seen without JavaScript
  bpfpath vm 6.12 -- bpfpath icmp -c 4     the same on another kernel; bpfpath vm list names them
"""
_LOOK_EVERY = 0.5  # seconds between two looks at what arrived, at least
_REST = 4.0  # and so many times what the last look took, so that long captures are not busy with looking
_PATHS_PER_LOOK = 50  # more cannot be read, and writing them would take longer than the packets did
_TABLE_ROWS = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Words of their own, not filters: no filter of libpcap's begins with one.
        if words[:1] == ["doctor"]:
            return _doctor(words[1:])
        if words[:1] == ["vm"]:
            return _vm(words[1:])
        if words[:1] == ["check-notebook"]:
            return _check_notebook(words[1:])
        return _trace(_options(words))
    except BpfpathError as error:
        # As it is: the message of a filter's error has a line that marks the place.
        print(f"bpfpath: {error}", file=sys.stderr)
        files = [word for word in words if _is_file(word)] if isinstance(error, FilterError) else []
        if files:
            print(
                f"{files[0]} is a file, and no filter. A recording is read in Python: "
                f"`bpfpath_nb.Recording.load({files[0]!r})`.",
                file=sys.stderr,
            )
        return 1
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a file that cannot be written
        print(f"bpfpath: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # too long for a name, or in somebody else's folder
        return False


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bpfpath",
        description="Show the way of packets through the Linux kernel.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_capture_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="save the recording (Parquet) as well")
    parser.add_argument("-q", "--quiet", action="store_true", help="the table of packets at the end, without the paths")
    parser.add_argument("--version", action="version", version=f"bpfpath_nb {__version__}")
    return parser.parse_intermixed_args(words)


def _doctor(words: Sequence[str]) -> int:
    from bpfpath_nb.doctor import doctor

    argparse.ArgumentParser(
        prog="bpfpath doctor",
        description="Show what this machine can and cannot do, what that costs, and what mends it. "
        "The exit status is 1 where no packets can be captured.",
    ).parse_args(words)
    found = doctor()
    print(found)
    return 0 if found.able else 1


def _check_notebook(words: Sequence[str]) -> int:
    from bpfpath_nb.check_notebook import LIMIT, check_notebook

    parser = argparse.ArgumentParser(
        prog="bpfpath check-notebook",
        description="Tell what cannot be seen of saved notebooks where no JavaScript runs and no kernel answers: "
        "widgets without HTML beside them, scripts, local files, outputs that are too large. The exit status is 1 "
        "where there is something.",
    )
    parser.add_argument("notebook", nargs="+", metavar="NOTEBOOK", help="a saved notebook (.ipynb)")
    parser.add_argument(
        "--limit", type=int, default=LIMIT // 1000, metavar="KB", help=f"most per output (default: {LIMIT // 1000})"
    )
    options = parser.parse_args(words)
    found = 0
    for path in options.notebook:
        try:
            problems = check_notebook(path, options.limit * 1000)
        except OSError as error:
            raise NotebookError(f"{path} cannot be read: {error.strerror}.") from None
        for problem in problems:
            print(f"{path}: {problem}")
        if not problems:
            print(f"{path}: all of it can be seen without JavaScript")
        found += len(problems)
    return 1 if found else 0


def _vm(words: Sequence[str]) -> int:
    from bpfpath_nb.lab import kernels, vm

    parser = argparse.ArgumentParser(
        prog="bpfpath vm",
        usage="bpfpath vm [--memory SIZE] [--cpus N] [--counted] KERNEL -- COMMAND ...\n"
        "       bpfpath vm list\n"
        "       bpfpath vm fetch [KERNEL ...]",
        description="Run a command on a stock Debian kernel in a virtual machine over this machine's own files. It "
        "runs as root in the working directory, which is shared; whatever else it changes is gone afterwards. Its "
        "output, exit status and Ctrl-C are passed through. `list` shows which kernels there are, `fetch` gets their "
        "newest releases (a kernel that is not here is fetched when it is first run).",
    )
    parser.add_argument("--memory", default="2G", metavar="SIZE", help="of the machine (default: 2G)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="of the machine (default: 2)")
    parser.add_argument(
        "--counted",
        action="store_true",
        help="its clock counts instructions, 1 ns each: measured twice, it is the same",
    )
    parser.add_argument("kernel", nargs="+", metavar="KERNEL", help=f"{', '.join(kernels.SOURCES)}")
    ours, dashes, command = list(words), "--" in words, []
    if dashes:
        ours, command = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    options = parser.parse_args(ours)
    first, *rest = options.kernel
    if not dashes and first == "list" and not rest:
        print(kernels.table())
        return 0
    if not dashes and first == "fetch":
        for name in rest or kernels.SOURCES:
            with kernels.held(kernels.find(name), newest=True) as kernel:
                print(f"{kernel.name}: {kernel.release}")
        return 0
    if rest or not command:
        parser.error("write one kernel, two dashes and the command: bpfpath vm 6.12 -- uname -r")
    return vm.run(first, command, memory=options.memory, cpus=options.cpus, counted=options.counted)


def _trace(options: argparse.Namespace) -> int:
    from bpfpath_nb.capture import Capture

    with Capture(**capture_arguments(options), save=options.output) as capture:
        print("capturing; Ctrl-C ends it", file=sys.stderr)
        failed: BpfpathError | None = None
        try:
            _follow(capture, quiet=options.quiet)
        except KeyboardInterrupt:
            pass
        except BpfpathError as error:
            failed = error  # the tracer died: what it had sent is kept, shown and saved
    recording = capture.recording
    if options.output:
        print(f"saved as {options.output}", file=sys.stderr)
    _summarise(recording)
    if failed is not None:
        raise failed
    return 0


def _follow(capture: Capture, *, quiet: bool) -> None:
    """Print packets' paths until the capture ends, each once, when it has no more hops than at the last look.

    Of many packets at a time only some are printed, and how many were left out, so as to keep up with them.
    """
    import pandas as pd

    done, before = pd.Index([]), pd.Series(dtype="uint32")
    while True:
        ended = capture.status.state != "capturing"
        began = time.monotonic()
        if not quiet:
            recording = capture.recording
            hops = recording.packets["hops"]
            settled = hops if ended else hops[hops == before.reindex(hops.index, fill_value=0)]
            new, before = settled.index.difference(done), hops
            done = done.union(new)
            for packet in new[:_PATHS_PER_LOOK]:
                print(recording.text(packet), flush=True)
            if left_out := len(new[_PATHS_PER_LOOK:]):
                print(f"... and {left_out} more packets, too many to print; -o FILE keeps them all", flush=True)
        if ended:
            return
        capture.wait(seconds=max(_LOOK_EVERY, _REST * (time.monotonic() - began)))


def _summarise(recording: Recording) -> None:
    from bpfpath_nb.io.summary import packet_lines

    packets = recording.packets
    print("no packet matched" if packets.empty else "\n".join(packet_lines(packets, _TABLE_ROWS)))


if __name__ == "__main__":
    sys.exit(main())
