"""`live()` with real packets: it starts, shows, stops and detaches, and the notebook stays usable meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from bpfpath_nb import live
from bpfpath_nb.capture import running
from bpfpath_nb.lab import Lab

ASK = ["dig", "+short", "+time=1", "+tries=1", "@10.0.2.2", "www.example.test", "A"]


def soon(holds: Callable[[], object], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(holds())


def test_packets_and_drops_show_as_they_come(lab: Lab) -> None:
    panel = live("udp port 53", namespaces=list(lab.names.values()), packets=3)
    began = time.monotonic()
    panel.start()
    assert time.monotonic() - began < 0.5  # arming is not waited for
    assert soon(lambda: panel.capture is not None)

    lab.run("client", ASK)
    assert soon(lambda: "delivered" in panel._seen.value)
    assert "2 packets" in panel._state.value
    assert panel._bar.layout.visibility == "visible"
    assert panel._bar.value == 2 / 3
    with lab.drop("router", "udp dport 53"):
        lab.run("client", ASK)

    assert soon(lambda: "last drops" in panel._seen.value and not panel._start.disabled)
    assert panel.capture is not None
    assert panel.capture.status.state == "stopped"
    assert "NETFILTER_DROP" in panel.snapshot().html
    assert panel._bar.value == 1.0
    panel.close()


def test_stop_and_close_detach(lab: Lab) -> None:
    panel = live("udp port 53", namespaces=list(lab.names.values()))
    panel.start()
    assert soon(running)
    panel._end.click()
    assert soon(lambda: not running() and not panel._start.disabled)
    panel.start()
    assert soon(running)
    panel.close()
    assert running() == []


def test_what_the_tracer_refuses_is_told_in_the_panel() -> None:
    panel = live("udp", namespaces=["no-such-place"])
    panel.start()
    assert soon(lambda: "no-such-place" in panel._error.value)
    assert soon(lambda: not panel._start.disabled)
    panel.close()
