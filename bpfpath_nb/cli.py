"""`bpfpath` on a shell: `bpfpath FILTER` prints packets and their paths as they end, `bpfpath doctor` the state of
the machine.

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
from typing import TYPE_CHECKING

from bpfpath_nb.errors import BpfpathError
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
"""
_LOOK_EVERY = 0.5  # seconds between two looks at what arrived
_SETTLED = 0.5  # seconds after which a packet without a new hop counts as shown in full


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # A word of its own, not a filter: no filter of libpcap's begins with it.
        return _doctor(words[1:]) if words[:1] == ["doctor"] else _trace(_options(words))
    except BpfpathError as error:
        # As it is: the message of a filter's error has a line that marks the place.
        print(f"bpfpath: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bpfpath",
        description="Show the way of packets through the Linux kernel.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("filter", nargs="*", metavar="FILTER", help="which packets: pcap-filter(7); without one, all")
    parser.add_argument("-d", "--duration", type=float, metavar="SECONDS", help="end after so long")
    parser.add_argument("-c", "--packets", type=int, metavar="N", help="end after so many packets")
    parser.add_argument("-o", "--output", metavar="FILE", help="save the recording (Parquet) as well")
    parser.add_argument("--on", default="local", metavar="HOST", help="where: local (default) or ssh://user@host")
    parser.add_argument(
        "-n", "--namespace", action="append", metavar="NAME", help="only this network namespace; repeat for more"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="the table of packets at the end, without the paths")
    parser.add_argument("--version", action="version", version=f"bpfpath_nb {__version__}")
    return parser.parse_args(words)


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


def _trace(options: argparse.Namespace) -> int:
    from bpfpath_nb.capture import Capture

    with Capture(
        " ".join(options.filter),
        on=options.on,
        namespaces=options.namespace,
        duration=options.duration,
        packets=options.packets,
    ) as capture:
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
        recording.save(options.output)
        print(f"saved as {options.output}", file=sys.stderr)
    _summarise(recording)
    if failed is not None:
        raise failed
    return 0


def _follow(capture: Capture, *, quiet: bool) -> None:
    """Print each packet's path once, when nothing more has been heard of it for a moment, until the capture ends."""
    shown: set[int] = set()
    hops: dict[int, int] = {}
    changed: dict[int, float] = {}
    while True:
        ended = capture.status.state != "capturing"
        if not quiet:
            recording = capture.recording
            now = time.monotonic()
            packets = recording.packets
            for packet, count in zip(packets.index.tolist(), packets["hops"].tolist(), strict=True):
                if hops.get(packet) != count:
                    hops[packet], changed[packet] = count, now
                if packet not in shown and (ended or now - changed[packet] > _SETTLED):
                    shown.add(packet)
                    print(recording.text(packet), flush=True)
        if ended:
            return
        capture.wait(seconds=_LOOK_EVERY)


def _summarise(recording: Recording) -> None:
    columns = ["flow", "verdict", "reason", "where", "hops", "total"]
    packets = recording.packets
    if packets.empty:
        print("no packet matched")
    else:
        print(packets[columns].to_string())


if __name__ == "__main__":
    sys.exit(main())
