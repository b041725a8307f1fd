"""pcapng as tshark reads it: every packet with its time, bytes, place and path."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streams import CLIENT, Capture, capture, facts_row, start_record, udp_frame

from bpfpath_nb import sample
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE

FIELDS = (
    "frame.time_epoch", "frame.len", "frame.cap_len", "frame.interface_name", "frame.interface_description",
    "frame.packet_id", "frame.encap_type", "frame.comment", "ip.src", "ip.dst", "udp.srcport", "vlan.id", "eth.src",
    "frame.packet_flags_direction",
)  # fmt: skip


def tshark(path: Path) -> pd.DataFrame:
    """One row per packet that tshark sees."""
    assert shutil.which("tshark"), "Debian's tshark is missing: apt-get install tshark"
    words = [word for field in FIELDS for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "fields", "-E", "separator=/t", "-E", "header=y", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "warning" not in done.stderr.lower().replace("running as user", ""), done.stderr
    return pd.read_csv(io.StringIO(done.stdout), sep="\t", dtype=str, keep_default_na=False, quoting=3)


@pytest.fixture(scope="module")
def dns(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, pd.DataFrame]:
    recording = sample("dns")
    return recording, tshark(recording.to_pcapng(tmp_path_factory.mktemp("dns") / "x.pcapng"))


def test_each_packet_is_one_block_at_its_time_with_its_ends(dns: tuple[Recording, pd.DataFrame]) -> None:
    recording, seen = dns

    packets = recording.packets
    assert seen["frame.packet_id"].astype(int).tolist() == packets.index.tolist()
    assert seen["frame.time_epoch"].tolist() == [f"{t.value // 10**9}.{t.value % 10**9:09d}" for t in packets["first"]]
    assert seen["ip.src"].tolist() == packets["src"].tolist()
    assert seen["ip.dst"].tolist() == packets["dst"].tolist()
    assert seen["udp.srcport"].astype(int).tolist() == packets["sport"].tolist()
    assert seen["frame.len"].astype(int).tolist() == packets["length"].tolist()


def test_a_comment_tells_path_gaps_and_verdict(dns: tuple[Recording, pd.DataFrame]) -> None:
    recording, seen = dns

    for at, (number, packet) in enumerate(recording.packets.iterrows()):
        comment = seen["frame.comment"][at]
        assert comment.startswith(f"packet {number} {packet['verdict']}")
        assert (f"{packet['reason']} in {packet['where']}" in comment) == (packet["verdict"] == "dropped")
        assert f"path {packet['path']}  {packet['namespaces']}  {packet['hops']} hops" in comment
        hops = recording.df.loc[number]
        way = [f"{func} {gap.value / 1000:.3f}" for func, gap in zip(hops["func"], hops["gap"], strict=True)][:-1]
        assert all(step in comment for step in way)
        assert comment.endswith(str(hops["func"].iat[-1]))


def test_a_place_is_named_where_it_changes(dns: tuple[Recording, pd.DataFrame]) -> None:
    comment = dns[1]["frame.comment"][0]

    assert [comment.count(place) for place in ("client: ", "client eth0: ", "router eth1: ")] == [1, 1, 1]


def test_namespaces_and_interfaces_are_those_of_the_file(tmp_path: Path) -> None:
    recording = capture(60).recording()

    seen = tshark(recording.to_pcapng(tmp_path / "x.pcapng"))

    first = recording.df.groupby("packet", observed=True).first()
    assert seen["frame.interface_name"].tolist() == [
        f"{netns}:{dev}" for netns, dev in zip(first["netns"], first["dev"], strict=True)
    ]
    assert seen["frame.interface_description"][0] == f"interface eth0 in network namespace client (net:[{CLIENT}])"
    assert set(seen["frame.encap_type"]) == {"1"}
    assert set(seen["frame.packet_flags_direction"]) == {"0x00000002"}  # a local sender's


def made(*facts: np.ndarray, length: int = 70) -> Recording:
    """One packet per row of facts, each seen once on the client's eth0."""
    events = np.zeros(len(facts), EVENT_DTYPE)
    events["packet"] = np.arange(len(facts)) + 1
    events["time"], events["netns"], events["ifindex"], events["len"] = 5_000_000_000_000, CLIENT, 2, length
    events["seq"] = np.arange(len(facts))
    known = [row for row in facts if row["packet"][0]]
    return Capture(events, np.concatenate([np.empty(0, FACTS_DTYPE), *known]), np.empty(0), {}).recording()


def test_frames_and_bare_packets_have_their_own_link_type(tmp_path: Path) -> None:
    frame = udp_frame(4000, 53)
    recording = made(facts_row(frame, packet=1), facts_row(frame[14:], packet=2, link=101))

    seen = tshark(recording.to_pcapng(tmp_path / "x.pcapng"))

    assert seen["frame.encap_type"].tolist() == ["1", "7"]
    assert seen["udp.srcport"].tolist() == ["4000", "4000"]
    assert seen["frame.interface_name"].tolist() == ["client:eth0", "client:eth0"]


def test_a_tag_beside_the_data_is_put_back(tmp_path: Path) -> None:
    frame = udp_frame(4000, 53)
    recording = made(facts_row(frame, packet=1, vlan_tpid=0x8100, vlan_tci=0x2005), facts_row(frame, packet=2))

    seen = tshark(recording.to_pcapng(tmp_path / "x.pcapng"))

    assert seen["vlan.id"].tolist() == ["5", ""]
    assert seen["udp.srcport"].tolist() == ["4000", "4000"]
    assert seen["frame.len"].astype(int).tolist() == [len(frame) + 4, len(frame)]
    assert seen["frame.cap_len"].tolist() == seen["frame.len"].tolist()


def test_the_length_on_the_wire_is_told_where_bytes_are_missing(tmp_path: Path) -> None:
    long = udp_frame(4000, 53, payload=1400)
    recording = made(facts_row(long, packet=1), facts_row(b"", packet=0), length=70)

    seen = tshark(recording.to_pcapng(tmp_path / "x.pcapng"))

    assert seen["frame.len"].astype(int).tolist() == [len(long), 70]
    assert seen["frame.cap_len"].astype(int).tolist() == [128, 0]


def test_a_long_path_is_told_in_part(tmp_path: Path) -> None:
    made = capture(1, kinds=("answered",))
    made.events = np.repeat(made.events[:1], 30_000)
    made.events["time"] += np.arange(30_000, dtype=np.uint64)

    (comment,) = tshark(made.recording().to_pcapng(tmp_path / "x.pcapng"))["frame.comment"]

    assert comment.endswith(" > ... 29000 more")


def test_names_of_any_length_fit(tmp_path: Path) -> None:
    made = capture(2, kinds=("answered",))
    made.events = np.concatenate([made.events[:1]] * 999 + [made.events])
    record = start_record()
    record["functions"] = [{**f, "name": "é" * 250} for f in record["functions"]]
    recording = Recording.from_stream(io.BytesIO(made.write(record=record)))

    seen = tshark(recording.to_pcapng(tmp_path / "x.pcapng"))

    assert len(seen) == 2
    assert seen["frame.comment"][0].endswith("...")


def test_a_recording_of_nothing_is_a_file_of_no_packets(tmp_path: Path) -> None:
    empty = Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {}).recording()

    assert len(tshark(empty.to_pcapng(tmp_path / "x.pcapng"))) == 0


def test_what_was_lost_and_what_was_asked_stands_at_the_head(tmp_path: Path) -> None:
    path = capture(50, lost=0.1).recording().to_pcapng(tmp_path / "x.pcapng")

    said = subprocess.run(["capinfos", path], capture_output=True, text=True, check=True).stdout

    assert "filter: udp port 53" in said
    assert "events were lost" in said
    assert "Linux 6.18.0-test" in said


def test_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = capture(100).recording()
    whole = recording.to_pcapng(tmp_path / "whole").read_bytes()
    monkeypatch.setattr("bpfpath_nb.io.pcapng._CHUNK_HOPS", 40)

    assert recording.to_pcapng(tmp_path / "parts").read_bytes() == whole
