"""The recordings that the package carries: they load, show what they are said to show, and name nobody's machine."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from bpfpath_nb import sample, samples
from bpfpath_nb.errors import OptionError
from bpfpath_nb.lab.samples import _SCRIPTS

FOLDER = Path(samples.__file__).parent


def test_dns_has_an_answer_a_drop_by_nftables_and_a_closed_port() -> None:
    packets = sample("dns").packets

    by_end = packets.groupby(["verdict", "reason"], observed=True, dropna=False).size().to_dict()
    assert packets["verdict"].isin(["delivered", "dropped"]).all()
    assert by_end["dropped", "NETFILTER_DROP"] == 2
    assert by_end["dropped", "NO_SOCKET"] == 1
    assert (packets["verdict"] == "delivered").sum() == 24
    assert packets["complete"].all()


def test_tcp_has_connections_a_closed_port_and_a_handshake_that_is_tried_again() -> None:
    recording = sample("tcp")

    asked = recording.where("tcp[tcpflags] & (tcp-syn | tcp-ack) == tcp-syn").packets
    assert asked.groupby("dport").size().to_dict() == {8080: 4, 8081: 1}
    assert set(recording.drops["reason"]) == {"NETFILTER_DROP", "NO_SOCKET"}
    assert (recording.drops["reason"] == "NETFILTER_DROP").sum() >= 2
    assert recording.drops["stack"].notna().all()
    assert {"tcp-no-socket", "tcp-reset", "netfilter-forward"} <= set(recording.diagnose().findings["rule"])


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_a_sample_is_real_whole_and_small(name: str) -> None:
    recording = sample(name)

    assert (recording.df["probe"] == "kprobe").any()
    assert not recording.quality[["events_lost", "facts_lost", "probe_misses", "unfinished"]].any()
    assert (FOLDER / f"{name}.parquet").stat().st_size < 200_000


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_a_sample_does_not_name_the_machine_that_made_it(name: str) -> None:
    assert sample(name).start.host == "lab"


def test_every_file_is_a_sample_and_can_be_made_anew() -> None:
    assert {path.stem for path in FOLDER.glob("*.parquet")} == set(samples.SAMPLES) == set(_SCRIPTS)


@pytest.mark.parametrize("name", ["ntp", "", "../dns", None])
def test_an_unknown_name_lists_the_samples(name: str) -> None:
    with pytest.raises(OptionError, match="'dns'"):
        sample(name)


def test_the_example_holds() -> None:
    assert doctest.testmod(samples, extraglobs={"sample": sample}).failed == 0
