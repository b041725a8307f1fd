"""`make demo`: three real DNS queries, three different ends, seen in the kernel.

Client, router and server are network namespaces; on the server a real `dnsmasq` listens, the client asks with a real
`dig`. One query is answered, one is dropped by an nftables rule on the router, one goes to a port where nobody
listens. All are captured live. Then the quickstart notebook is executed the same way and left as an HTML page. The
namespaces are gone at the end, also when the demo is interrupted or killed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bpfpath_nb.errors import BpfpathError
from bpfpath_nb.lab.network import Lab

if TYPE_CHECKING:
    from bpfpath_nb.capture import Capture

FILTER = "udp port 53"
NAME = "www.example.test"

_NOTEBOOK_LIMIT = 300  # seconds for one cell


def main() -> int:
    """Run the demo. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bpfpath_nb.lab.demo", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument(
        "--notebook", type=Path, default=Path("notebooks/quickstart.ipynb"), help="which one to execute"
    )
    parser.add_argument("--page", type=Path, default=Path("out/quickstart.html"), help="where to leave it as HTML")
    parser.add_argument("--no-notebook", action="store_true", help="the three queries only")
    parser.add_argument("--prefix", default="", help="put in front of the names of the namespaces")
    options = parser.parse_args()
    try:
        _three_queries(options.prefix)
        if not options.no_notebook:
            _notebook(options.notebook, options.page)
    except BpfpathError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; everything is taken down", file=sys.stderr)
        return 130
    return 0


def _three_queries(prefix: str) -> None:
    from bpfpath_nb.capture import Capture

    start = time.monotonic()
    with Lab.dns(prefix=prefix) as lab:
        print(f"Three network namespaces, made in {time.monotonic() - start:.1f} s:\n  {_members(lab)}\n", flush=True)
        start = time.monotonic()
        with Capture(FILTER, namespaces=list(lab.names.values())) as capture:
            print(
                f"Capturing {FILTER!r}, armed in {time.monotonic() - start:.1f} s. The client asks for {NAME}:",
                flush=True,
            )
            server, router = lab.address("server"), lab.address("router")
            _ask(lab, "a", server, "the server answers")
            with lab.drop("router", FILTER.replace("port", "dport")):
                _ask(lab, "b", server, "an nftables rule on the router drops it")
            _ask(lab, "c", router, "nobody listens on the router")
        _show(capture)


def _members(lab: Lab) -> str:
    return repr(lab).removeprefix("Lab(").removesuffix(")").replace(" --- ", "\n  ")


def _ask(lab: Lab, letter: str, server: str, what: str) -> None:
    command = ["dig", "+short", "+time=1", "+tries=1", f"@{server}", NAME]
    said = lab.run("client", command).stdout.strip().splitlines()[0]
    print(f"  {letter}. {' '.join(command)}\n     {what}:\n     {said.lstrip('; ')}", flush=True)


def _show(capture: Capture) -> None:
    packets = capture.packets
    print(f"\ncap\n\n{capture!r}\n")
    dropped = packets.index[packets["verdict"].eq("dropped")]
    for number in dropped[:1]:
        print(f"cap.text({number}), the path of a dropped packet\n\n{capture.text(int(number))}\n", flush=True)


def _notebook(source: Path, page: Path) -> None:
    """Execute a notebook as a user would, and leave it as a page that needs nothing from outside."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    print(f"Executing {source} ...", flush=True)
    notebook = nbformat.read(source, as_version=4)  # type: ignore[no-untyped-call]
    # Through sockets in a folder of our own, not through TCP ports that every user of the machine can reach: the
    # kernel is root's.
    with tempfile.TemporaryDirectory() as folder:
        sockets = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
        where = {"metadata": {"path": str(source.parent)}}
        NotebookClient(
            notebook, config=sockets, kernel_name="python3", timeout=_NOTEBOOK_LIMIT, resources=where
        ).execute()
    nothing_from_outside = {name: "" for name in HTMLExporter.class_trait_names() if name.endswith("_url")}
    exporter = HTMLExporter(**nothing_from_outside)  # type: ignore[no-untyped-call]
    html, _ = exporter.from_notebook_node(notebook)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html)
    print(f"The executed notebook as a page: {page.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
