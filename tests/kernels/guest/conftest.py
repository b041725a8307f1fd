"""Tests here run inside a stock kernel's machine, each on every kernel unless marked ``only("6.12")``: see `relay`.

``KERNELS="5.10 6.12"`` in the environment names the kernels.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "live"))  # for the traffic and the tests that are the same there
sys.path.insert(0, str(Path(__file__).parents[2]))  # for what they share
sys.path.insert(0, str(Path(__file__).parents[1]))  # for `relay`
sys.path.insert(0, str(Path(__file__).parent))  # for `network`

import relay

KERNELS = [relay.GUEST] if relay.GUEST else (os.environ.get("KERNELS") or "6.12 5.10 6.1 sid").split()
_receivers = pytest.StashKey[relay.Receiver]()


@pytest.fixture(scope="session", autouse=True, params=KERNELS)
def guest(request: pytest.FixtureRequest) -> str:
    """The name of the kernel; in every test's name."""
    return str(request.param)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(*kernels): run it on these stock kernels, not on all")
    if relay.GUEST:
        config.pluginmanager.register(relay.Sender(config))
    else:
        config.stash[_receivers] = relay.Receiver(config)
        config.pluginmanager.register(config.stash[_receivers])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _wanted(item)]


def _wanted(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("only")
    return marker is None or relay.kernel_of(item) in marker.args


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if relay.GUEST or not relay.kernel_of(item):  # pytest asks for every test, also for those of other folders
        return None
    item.config.stash[_receivers].show(item)
    return True
