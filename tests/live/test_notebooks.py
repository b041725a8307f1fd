"""The worked notebooks run from top to bottom, and still say what their text says that they show."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

# What must be in the outputs, in this order.
SHOWS = {
    "compare": [
        "(9 of 63) end in NETFILTER_DROP in netns router; none of before did",
        "Only in slow: median time after qdisc_enqueue in netns router on eth1 (waiting: qdisc)",
        "Two packets show what happened to them, not what usually happens.",
    ],
    "quickstart": ["10.0.2.2", "NETFILTER_DROP", "NO_SOCKET"],
    "explore": [
        "24 delivered, 3 dropped",
        "NETFILTER_DROP in nft_do_chain (router)",
        "packet 25  udp 10.0.1.1:41788 > 10.0.2.2:53  85 bytes\n    dropped: NETFILTER_DROP in nft_do_chain",
        "Packet 25 was dropped (NETFILTER_DROP) by nft_do_chain in netns router",
    ],
    "drops": [
        "the way back to the source leads through another interface",
        "ip netns exec router sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.eth0.rp_filter",
        "the socket's receive buffer was full",
        "the packet is larger than the next link takes, and may not be cut",
        "packets wait in the queue of the interface",
        "the packet goes round in circles",
        "Nothing is wrong in 3 packets",
    ],
}


@pytest.mark.parametrize("name", SHOWS)
def test_it_runs_and_shows_what_it_tells(name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    # Through sockets in a folder of our own: the kernel is root's.
    config = Config(KernelManager={"transport": "ipc", "ip": str(tmp_path / "k")})
    NotebookClient(
        notebook, config=config, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "\n".join(output.get("text") or output.data.get("text/plain", "") for output in outputs)
    at = 0
    for shown in SHOWS[name]:
        at = text.find(shown, at)
        assert at >= 0, f"{shown!r} is not shown, or not there"
