"""What pwru and retis recorded becomes a recording of ours.

The files `pwru-*` are what pwru 1.0.5 (Debian's) and 1.0.11 printed on Linux 6.12 while, in the practice network, a
name was asked for and answered, asked for and dropped by nftables on the router, and asked for where nobody listens.
retis' events are written here in its format, and its own reader has to take them.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import udp_frame

from bpfpath_nb.errors import RecordingError, RequirementError
from bpfpath_nb.recording import Recording

RECORDINGS = Path(__file__).parents[1] / "recordings"
CLIENT, ROUTER, SERVER = "net:[4026532342]", "net:[4026532397]", "net:[4026532452]"


def pwru(name: str) -> str:
    return gzip.decompress((RECORDINGS / f"pwru-{name}.gz").read_bytes()).decode()


@pytest.fixture(scope="module", params=["1.0.11.json", "1.0.5.txt"])
def printed(request: pytest.FixtureRequest) -> tuple[str, Recording]:
    return request.param, Recording.from_pwru(pwru(request.param))


def test_pwrus_packets_and_their_ends(printed: tuple[str, Recording]) -> None:
    packets = printed[1].packets

    assert packets["verdict"].tolist() == ["delivered", "delivered", "dropped", "dropped"]
    assert packets["src"].tolist() == ["10.0.1.1", "10.0.2.2", "10.0.1.1", "10.0.1.1"]
    assert packets["dst"].tolist() == ["10.0.2.2", "10.0.1.1", "10.0.2.2", "10.0.1.2"]
    assert (packets["proto"] == "udp").all()
    assert packets["dport"].tolist()[::2] == [53, 53]
    assert packets["namespaces"].tolist() == [
        f"{CLIENT} > {ROUTER} > {SERVER}", f"{SERVER} > {ROUTER} > {CLIENT}", *[f"{CLIENT} > {ROUTER}"] * 2,
    ]  # fmt: skip
    assert packets["length"].tolist() == [85, 89, 85, 85]
    assert packets["complete"].all()


def test_pwrus_hops_are_its_lines(printed: tuple[str, Recording]) -> None:
    name, recording = printed
    lines = pwru(name).splitlines()
    if name.endswith("json"):
        told = [
            (e["func"].partition("(")[0], e["time"], e.get("cpu", 0), e.get("netns", 0)) for e in map(json.loads, lines)
        ]
    else:
        words = [line.split() for line in lines[1:]]
        told = [(w[3].partition("(")[0], int(w[4]), int(w[1]), int(w[5].partition("=")[2])) for w in words]

    df = recording.df.sort_values("time", kind="stable")

    assert sorted(told) == sorted(
        zip(df["func"], [t.value for t in df["time"]], df["cpu"], df["netns_inum"].fillna(0), strict=True)
    )
    assert recording.df["gap"].dropna().ge(pd.Timedelta(0)).all()
    assert set(recording.df["dev"].dropna()) == {"if11", "if12", "if21", "eth0"}
    assert set(recording.df["comm"].dropna()) == {"dig", "dnsmasq"}


def test_who_dropped_and_why_is_told_where_pwru_tells_it() -> None:
    packets = Recording.from_pwru(pwru("1.0.11.json")).packets

    assert packets["reason"].tolist()[2:] == ["NETFILTER_DROP", "NO_SOCKET"]
    assert packets["where"].tolist()[2:] == ["nft_do_chain", "__udp4_lib_rcv"]


def test_two_versions_of_pwru_give_the_same_paths() -> None:
    new, old = (Recording.from_pwru(pwru(name)) for name in ("1.0.11.json", "1.0.5.txt"))

    assert new.packets["path"].tolist()[2:] == old.packets["path"].tolist()[2:]


def test_an_import_says_that_losses_are_not_known(printed: tuple[str, Recording]) -> None:
    assert "imported from pwru, which does not count what it loses" in " ".join(repr(printed[1]).split())


def test_an_import_is_saved_and_loaded(printed: tuple[str, Recording], tmp_path: Path) -> None:
    loaded = Recording.load(printed[1].save(tmp_path / "x.parquet"))

    assert loaded.df.equals(printed[1].df)
    assert loaded.packets.equals(printed[1].packets)


def test_a_file_is_read_as_its_text(tmp_path: Path) -> None:
    path = tmp_path / "pwru.out"
    path.write_text(pwru("1.0.11.json"))

    assert Recording.from_pwru(path).df.equals(Recording.from_pwru(str(path)).df)


def test_a_table_of_the_new_kind_is_read() -> None:
    # As printed with relative times, which make it no recording; so here they are made times of the clock.
    lines = pwru("1.0.11-relative.txt").splitlines()
    head, events = lines[0], [line for line in lines[1:] if line.startswith("0x")]
    fields = [line.split() for line in events]
    clock = np.cumsum([int(words[3]) for words in fields]) + 10**12
    timed = [" ".join([*words[:3], str(at), *words[4:]]) for words, at in zip(fields, clock.tolist(), strict=True)]
    table = "\n".join([head, *timed])

    df = Recording.from_pwru(table).df

    assert df["func"].tolist() == [words[-1] for words in fields]
    assert [t.value for t in df["time"]] == clock.tolist()
    assert set(df["netns"]) == {CLIENT}
    assert df["comm"].iat[0] == "dig"


@pytest.mark.parametrize("name", ["1.0.11-relative.txt", "1.0.11-absolute.json", "1.0.5-default.txt"])
def test_output_without_the_times_of_events_is_refused(name: str) -> None:
    with pytest.raises(RecordingError, match="--timestamp current"):
        Recording.from_pwru(pwru(name))


def test_an_address_that_was_freed_stands_for_another_packet() -> None:
    lines = [json.loads(line) for line in pwru("1.0.11.json").splitlines()]
    assert len({line["skb"] for line in lines}) < 4

    assert len(Recording.from_pwru(pwru("1.0.11.json")).packets) == 4


@pytest.mark.parametrize(
    "text",
    [
        "\n",
        "{}\n",
        "{\n",
        '{"skb": 5}\n',
        "SKB CPU PROCESS FUNC\n",
        "0x1 2\n",
        '{"skb":"0x1","func":"a","time":1,"cpu":-1}\n',
    ],
)
def test_what_is_no_output_of_pwru_is_refused(text: str) -> None:
    with pytest.raises(RecordingError, match="pwru"):
        Recording.from_pwru(text)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.sampled_from(["1.0.11.json", "1.0.5.txt"]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1),
)
def test_damaged_output_of_pwru_is_read_or_refused(name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(pwru(name)[:5000].encode())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        recording = Recording.from_pwru(data.decode("utf-8", "replace") + "\n")
    except RecordingError:
        return
    assert len(recording.df) == int(recording.packets["hops"].sum()) > 0


# --- retis


def event(time: int, symbol: str, probe: str = "raw_tracepoint", **sections: Any) -> dict[str, Any]:
    frame = udp_frame(5000, 53)
    packet = {"len": len(frame), "capture_len": len(frame), "data": base64.b64encode(frame).decode()}
    return {
        "common": {"timestamp": time, "smp_id": 2, "task": {"pid": 10, "tgid": 10, "comm": "dig"}},
        "kernel": {"symbol": symbol, "probe_type": probe},
        "skb-tracking": {"orig_head": 0xFFFF888000001000, "timestamp": 5000, "skb": 0xFFFF888000002000},
        "packet": packet, "netns": {"cookie": 3, "inum": 4026532342}, "dev": {"name": "eth0", "ifindex": 11},
    } | sections  # fmt: skip


STARTUP = {
    "common": {"timestamp": 1000},
    "startup": {"retis_version": "v1.6.0", "clock_monotonic_offset": {"sec": 1_790_000_000, "nsec": 5}},
}
DROP = {"skb-drop": {"drop_reason": "NO_SOCKET"}}
EVENTS = [
    STARTUP,
    event(5000, "net:net_dev_queue"),
    event(5300, "ip_rcv", "kprobe", netns={"cookie": 4, "inum": 4026532397}, dev={"name": "eth1", "ifindex": 3}),
    event(5400, "ip_rcv", "kretprobe"),
    event(6100, "skb:kfree_skb", **DROP),
    event(
        7000,
        "net:net_dev_queue",
        **{"skb-tracking": {"orig_head": 0xFFFF888000001000, "timestamp": 7000, "skb": 1 << 63}},
    ),
]


def retis_file(tmp_path: Path, *events: dict[str, Any]) -> Path:
    path = tmp_path / "retis.data"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in events))
    return path


def test_retis_events_become_hops(tmp_path: Path) -> None:
    recording = Recording.from_retis(retis_file(tmp_path, *EVENTS))

    df, packets = recording.df, recording.packets
    assert df.index.tolist() == [(1, 0), (1, 1), (1, 2), (2, 0)]
    assert df["func"].tolist() == ["net_dev_queue", "ip_rcv", "kfree_skb", "net_dev_queue"]
    assert df["probe"].tolist() == ["tracepoint", "kprobe", "tracepoint", "tracepoint"]
    assert df["gap"].tolist()[:2] == [pd.Timedelta(300), pd.Timedelta(800)]
    assert df["netns"].tolist()[:2] == [CLIENT, ROUTER]
    assert df["dev"].tolist()[:2] == ["eth0", "eth1"]
    assert df["comm"].tolist() == ["dig"] * 4
    assert df["time"].iat[0].value == 1_790_000_000 * 10**9 + 5 + 5000
    assert packets["flow"].tolist() == ["udp 10.0.1.2:5000 > 10.0.2.2:53"] * 2
    assert packets["verdict"].tolist() == ["dropped", "unfinished"]
    assert packets["reason"].tolist()[0] == "NO_SOCKET"
    assert "imported from retis, which does not count what it loses" in " ".join(repr(recording).split())


def test_a_retis_import_is_saved_and_loaded(tmp_path: Path) -> None:
    recording = Recording.from_retis(retis_file(tmp_path, *EVENTS))

    assert Recording.load(recording.save(tmp_path / "x.parquet")).df.equals(recording.df)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]\n", "\x00\xff", '{"a": 1}\n', json.dumps(STARTUP) + "\n", json.dumps(event(1 << 63, "a")) + "\n"],
)
def test_what_is_no_file_of_retis_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(content, "latin-1")

    with pytest.raises(RecordingError, match="retis"):
        Recording.from_retis(path)


def test_a_file_that_is_not_there_is_pythons_own_error(tmp_path: Path) -> None:
    for read in (Recording.from_retis, Recording.from_pwru):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "x")


def test_without_the_package_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "retis", None)

    with pytest.raises(RequirementError, match="pip install retis"):
        Recording.from_retis(retis_file(tmp_path, *EVENTS))
