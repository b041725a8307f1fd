"""Words of a command line as arguments of `Capture`."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import pytest

from bpfpath_nb import Capture
from bpfpath_nb.options import add_capture_options, capture_arguments


def arguments(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_capture_options(parser)
    return capture_arguments(parser.parse_intermixed_args(words))


def test_every_argument_of_capture_can_be_said() -> None:
    words = "udp port 53 -t 5 -c 2 -f all -n a -i eth0 --match tc --returns --sample 3 --max-events 9"
    more = "--events-ring 4096 --facts-ring 4096 --save f --timeout 7 --on ssh://h"
    said = arguments(*words.split(), *more.split())
    assert set(said) == set(inspect.signature(Capture).parameters)
    defaults = {name: parameter.default for name, parameter in inspect.signature(Capture).parameters.items()}
    assert {name for name, value in said.items() if value == defaults[name]} == set()


def test_what_is_not_said_is_the_default_of_capture() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(Capture).parameters.items()}
    said = arguments()
    assert said == {name: defaults[name] for name in said}


@pytest.mark.parametrize(
    ("words", "functions"),
    [
        (["-f", "drops"], "drops"),
        (["-f", "^ip6?_rcv{1,2}$"], "^ip6?_rcv{1,2}$"),
        (["-f", "./names,1.txt"], "./names,1.txt"),
        (["-f", "ip_rcv,ip_forward"], ["ip_rcv", "ip_forward"]),
        (["-f", "ip_rcv", "-f", "tcp_v4_rcv"], ["ip_rcv", "tcp_v4_rcv"]),
    ],
)
def test_functions(words: list[str], functions: str | list[str]) -> None:
    assert arguments(*words)["functions"] == functions


def test_words_of_the_filter_may_stand_on_both_sides_of_options() -> None:
    said = arguments("udp", "-n", "a,b", "port", "53", "-n", "c")
    assert said["filter"] == "udp port 53"
    assert said["namespaces"] == ["a", "b", "c"]
