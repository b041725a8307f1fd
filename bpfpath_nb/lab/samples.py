"""`python -m bpfpath_nb.lab.samples`: make the recordings of `bpfpath_nb.samples` anew.

To be run on a stock kernel, so that the samples show what most people's kernels show, kprobes included::

    bpfpath vm 6.12 -- python -m bpfpath_nb.lab.samples --folder bpfpath_nb/samples

The network is `Lab.dns`: client, router and server, each a network namespace. Who captures, and on which machine,
is left out of the files: the host is called "lab".

dns
    The client asks the server for a name, twelve times. Two more queries are dropped by an nftables rule on the
    router, and one goes to the router itself, where nobody listens.
tcp
    The client opens three connections one after the other to a server that sends back what it gets, 3,000 bytes each.
    A fourth goes to a port where nobody listens. Of a fifth the first SYNs are dropped by an nftables rule on the
    router, so that it comes about when the client has tried again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from bpfpath_nb.errors import BpfpathError
from bpfpath_nb.lab.network import Lab

_MODULES: Final = ("veth", "nf_tables", "nft_compat", "nft_chain_nat")
"""What a lab needs of a kernel that loads nothing by itself."""
_SETTLE: Final = 6.0  # seconds until the last packet's end has come, on an emulated processor
_LIMIT: Final = 900.0
_PYTHON: Final = (sys.executable, "-S", "-c")
_ECHO: Final = """
import socket, sys
listening = socket.create_server(("", 8080))
print("up", flush=True)
for _ in range(4):
    connection, _ = listening.accept()
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()
"""
_TALK: Final = """
import socket, sys
for _ in range(int(sys.argv[3])):
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    connection.sendall(b"x" * 3000)
    missing = 3000
    while missing:
        missing -= len(connection.recv(missing))
    connection.close()
"""
_ASK: Final = ("dig", "+short", "+time=3", "+tries=1", "www.example.test")


def main() -> int:
    """Make every sample. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bpfpath_nb.lab.samples", description="Make the recordings that the package carries."
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write them (default: here)")
    folder = parser.parse_args().folder
    for module in _MODULES:
        subprocess.run(["modprobe", "-q", module], check=False)
    try:
        with Lab.dns() as lab:
            for name, (packets, traffic) in _SCRIPTS.items():
                _make(lab, packets, traffic, folder / f"{name}.parquet")
    except BpfpathError as error:
        print(f"samples: {error}", file=sys.stderr)
        return 1
    return 0


def _make(lab: Lab, packets: str, traffic: Callable[[Lab], None], path: Path) -> None:
    from bpfpath_nb.capture import Capture
    from bpfpath_nb.recording import Recording
    from bpfpath_nb.start import StartRecord

    with Capture(packets, timeout=_LIMIT) as capture:
        traffic(lab)
        time.sleep(_SETTLE)
    events = capture.recording.events
    anywhere = StartRecord.from_dict(events.start.raw | {"host": "lab"})
    recording = Recording(replace(events, start=anywhere))
    recording.save(path)
    print(f"{path}\n{recording!r}\n", flush=True)


def _dns(lab: Lab) -> None:
    server = lab.address("server")
    for _ in range(12):
        _ask(lab, server)
    with lab.drop("router", "udp dport 53"):
        for _ in range(2):
            _ask(lab, server)
    _ask(lab, lab.address("router"))


def _ask(lab: Lab, server: str) -> None:
    lab.run("client", [*_ASK, f"@{server}"], timeout=_LIMIT)


def _tcp(lab: Lab) -> None:
    server = lab.address("server")
    echo = lab.popen("server", [*_PYTHON, _ECHO], stdout=subprocess.PIPE)
    assert echo.stdout is not None
    echo.stdout.readline()
    talk = [*_PYTHON, _TALK, server]
    lab.run("client", [*talk, "8080", "3"], timeout=_LIMIT)
    lab.run("client", [*talk, "8081", "1"], timeout=_LIMIT)
    with lab.drop("router", "tcp dport 8080 tcp flags syn"):
        late = lab.popen("client", [*talk, "8080", "1"])
        time.sleep(_SETTLE)
    late.wait(_LIMIT)
    echo.wait(_LIMIT)


_SCRIPTS: Final = {"dns": ("udp port 53", _dns), "tcp": ("tcp", _tcp)}


if __name__ == "__main__":
    sys.exit(main())
