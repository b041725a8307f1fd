"""Recordings that the package carries: small, real, and the same for everybody.

They were made by `python -m bpfpath_nb.lab.samples` in the practice network on Debian's kernel 6.12, with kprobes, and
show what that network makes them show (the command's module tells it). Documentation and notebooks use them where no
one may capture: a colleague without root, another system, a page that is only read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from bpfpath_nb.errors import OptionError

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording

SAMPLES: Final = {
    "dns": "a client asks a name server behind a router: answered, dropped by an nftables rule, sent to a closed port",
    "tcp": "a client talks to a server behind a router: three connections, a closed port, one that comes about late",
}
"""Name of each sample, and what it shows."""


def sample(name: str) -> Recording:
    """A small real recording that the package carries; neither root nor bcc is needed.

    Parameters
    ----------
    name : str
        ``"dns"``: a client asks a name server behind a router. Most queries are answered, two are dropped by an
        nftables rule on the router, one goes to a port of the router's where nobody listens.
        ``"tcp"``: a client opens three connections to a server behind the router, which sends back what it gets. A
        fourth goes to a port where nobody listens, and of a fifth an nftables rule drops the first SYNs.

    Raises
    ------
    OptionError
        There is no such sample; the message lists them.

    Examples
    --------
    >>> int((sample("dns").packets["verdict"] == "dropped").sum())
    3
    """
    from bpfpath_nb.recording import Recording

    if not isinstance(name, str) or name not in SAMPLES:
        known = "; ".join(f"{known!r} ({what})" for known, what in SAMPLES.items())
        raise OptionError(f"There is no sample {str(name)[:100]!r}. There is {known}.")
    return Recording.load(Path(__file__).with_name(f"{name}.parquet"))
