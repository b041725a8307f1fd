"""Redaction: nothing of what was real is in the saved file, and everything that is not a name is as it was."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import socket
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import CLIENT, Capture, capture, facts_row, udp_frame

from bpfpath_nb import sample
from bpfpath_nb.analysis.flows import flows
from bpfpath_nb.analysis.pseudonyms import Pseudonyms
from bpfpath_nb.analysis.redact import _facts, redacted_filter
from bpfpath_nb.errors import OptionError
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, EVENT_FLAGS, FACTS_DTYPE

KEY = b"test"
LLDP = "01:80:c2:00:00:0e"
"""The group that all speakers of LLDP are in; it names nobody."""
OTHER = Pseudonyms(KEY)


def contents(path: Path) -> Iterator[bytes]:
    """Everything that a Parquet file says, unpacked: metadata, the Arrow schema within it, and each column's values."""
    file = pq.ParquetFile(path)
    for key, value in file.metadata.metadata.items():
        yield key
        yield base64.b64decode(value) if key == b"ARROW:schema" else value
    table = file.read()
    yield str(table.schema).encode()
    for column in table.columns:
        chunk = column.combine_chunks()
        for value in chunk.chunks if isinstance(chunk, pa.ChunkedArray) else [chunk]:
            flat = value.dictionary if isinstance(value, pa.DictionaryArray) else value
            if pa.types.is_binary(flat.type) or pa.types.is_string(flat.type):
                yield b"\n".join(v if isinstance(v, bytes) else v.encode() for v in flat.to_pylist() if v is not None)
    yield path.read_bytes()


def secrets_of(recording: Recording) -> set[bytes]:
    """Every name and address of a recording, as text and as its bytes."""
    events = recording.events
    names = {name for called in events.devices.values() for _, name in called} - {"host", "lo"}
    names |= {*events.processes.values(), events.start.host}
    addresses = {*recording.packets["src"].dropna(), *recording.packets["dst"].dropna()} - {LLDP}
    found = {name.encode() for name in names} | {address.encode() for address in addresses}
    for address in addresses:
        if ":" in address and len(address) == 17:
            found.add(bytes.fromhex(address.replace(":", "")))
        else:
            found.add(ipaddress.ip_address(address).packed)
    return found


def stands_in(word: bytes, said: bytes) -> bool:
    """Whether it does, a text as a word of its own."""
    if not word.isascii() or not word.decode().isprintable():
        return word in said
    return re.search(rb"(?<!\w)" + re.escape(word) + rb"(?!\w)", said) is not None


@pytest.fixture(scope="module")
def office() -> Recording:
    """Two subnets, an Ethernet protocol, DNS with a name in it, and a filter, options and a host that name things."""
    dns = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06intern\x07example\x00\x00\x01\x00\x01"
    frames = [udp_frame(5000 + at, 53, f"198.51.{at // 4}.{10 + at}", "203.0.113.9") for at in range(8)]
    frames = [frame[:42] + dns for frame in frames]
    frames.append(bytes.fromhex("0180c200000e 005056aabbcc 88cc") + b"\x02\x07\x04switch-7")
    made = Capture(np.zeros(len(frames), EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {})
    made.events["packet"] = made.events["time"] = np.arange(len(frames)) + 1
    made.events["seq"], made.events["netns"], made.events["ifindex"] = np.arange(len(frames)), CLIENT, 2
    made.events["pid"] = 77
    made.facts = np.concatenate([facts_row(frame, packet=at + 1) for at, frame in enumerate(frames)])
    return made.recording(
        host="gateway.acme.example",
        filter="host 203.0.113.9 and port 53",
        options={
            "filter": "host 203.0.113.9 and port 53",
            "namespaces": ["client"],
            "interfaces": ["eth0"],
            "new": "x1y2",
        },
        refused=[{"name": "tc", "why": "eth0 has none", "instead": ""}],
        comment="made on gateway.acme.example",
    )


@pytest.mark.parametrize("which", ["dns", "office", "made"])
def test_nothing_real_is_in_the_file(which: str, office: Recording, tmp_path: Path) -> None:
    recording = {"dns": lambda: sample("dns"), "office": lambda: office, "made": lambda: capture(50).recording()}[
        which
    ]()
    secret = secrets_of(recording) | {b"example", b"intern", b"switch-7", b"acme", b"x1y2"}

    path = recording.redact(KEY).save(tmp_path / "x.parquet")

    said, before = (b"\0".join(contents(file)) for file in (path, recording.save(tmp_path / "before.parquet")))
    assert {word for word in secret if stands_in(word, said)} == set()
    assert {word for word in secrets_of(recording) if not stands_in(word, before)} == set()


def test_what_is_no_name_stays(tmp_path: Path) -> None:
    recording = sample("dns")

    redacted = Recording.load(recording.redact(KEY).save(tmp_path / "x.parquet"))

    names = ["flow", "netns", "dev", "comm", "skb"]
    assert redacted.df.drop(columns=names).equals(recording.df.drop(columns=names))
    names = ["flow", "src", "dst", "netns", "namespaces"]
    assert redacted.packets.drop(columns=names).equals(recording.packets.drop(columns=names))
    assert redacted.quality.equals(recording.quality)
    for name in ("netns", "dev", "comm", "skb"):
        one, other = (frame[name].astype(object).fillna("") for frame in (recording.df, redacted.df))
        assert len(set(zip(one, other, strict=True))) == one.nunique() == other.nunique()
    assert redacted.start.raw["redacted"] is True


def test_subnets_still_show(office: Recording) -> None:
    redacted = office.redact(KEY)

    def subnets(recording: Recording, length: int) -> list[int]:
        sources = recording.packets["src"].astype(str).iloc[:8]
        nets = [ipaddress.ip_network(f"{src}/{length}", strict=False) for src in sources]
        return [nets.index(net) for net in nets]

    for length in (16, 24, 28, 32):
        assert subnets(redacted, length) == subnets(office, length)


def test_the_same_key_gives_the_same_names_and_another_key_others() -> None:
    recording = capture(10).recording()

    one, again, another = recording.redact("a"), recording.redact("a"), recording.redact()

    assert one.df.equals(again.df)
    assert set(one.packets["src"]).isdisjoint(another.packets["src"])


def test_how_the_kernels_memory_is_laid_out_is_not_told() -> None:
    recording = Recording.load(Path(__file__).parents[1] / "recordings/version2.parquet")
    assert len(recording.events.stacks)

    redacted = recording.redact(KEY)

    for addresses in ("location", "skb"):
        shared = set(recording.events.hops[addresses].tolist()) & set(redacted.events.hops[addresses].tolist())
        assert shared <= {0}
    assert set(recording.events.stacks["frames"].ravel().tolist()) & set(redacted.events.stacks["frames"].ravel()) <= {
        0
    }
    assert redacted.drops[["func", "offset", "stack"]].equals(recording.drops[["func", "offset", "stack"]])


def test_a_place_without_a_name_is_not_called_by_its_address() -> None:
    recording = sample("dns")
    places = {f"{address:#x}" for address in recording.events.locations}
    assert places & {symbol for symbol, _ in recording.events.locations.values()}  # a BPF program's code

    redacted = recording.redact(KEY)

    assert not places & {symbol for symbol, _ in redacted.events.locations.values()}
    assert not [address for address in places if address in redacted.to_json()]


def test_calls_and_their_returns_still_find_each_other() -> None:
    made = Capture(np.zeros(2, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {})
    made.events["packet"], made.events["func"] = 1, 10
    made.events["time"], made.events["seq"] = [1000, 1700], [0, 1]
    made.events["location"] = 0xFFFFC90000123458
    made.events["flags"][1] = EVENT_FLAGS["return"]
    recording = made.recording()
    assert recording.df["duration"].iat[0] == pd.Timedelta(700)

    redacted = recording.redact(KEY)

    assert redacted.df["duration"].equals(recording.df["duration"])
    assert 0xFFFFC90000123458 not in {*redacted.events.hops["location"], *redacted.events.returns["location"]}


@pytest.mark.parametrize("key", ["", b"", 5])
def test_a_key_that_is_none_is_refused(key: object) -> None:
    with pytest.raises(OptionError):
        capture(1).recording().redact(key)


addresses = st.sampled_from([4, 16]).flatmap(lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=2))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(addresses, st.integers(0, 15))
def test_addresses_share_as_many_bits_as_before(packed: list[bytes], cut: int) -> None:
    packed += [one[: cut % len(one)] + other[cut % len(one) :] for one, other in pairwise(packed)]
    rows = np.array([list(address) for address in packed], np.uint8)

    moved = OTHER.addresses(rows)

    def shared(rows: np.ndarray) -> list[int]:
        bits = np.unpackbits(rows, axis=1)
        return [int(np.logical_and.accumulate(a == b).sum()) for a, b in zip(bits, np.roll(bits, 1, 0), strict=True)]

    assert shared(moved) == shared(rows)


CLASSES = [
    "0.0.0.0", "127.0.0.53", "224.0.0.251", "255.255.255.255", "::", "::1", "ff02::1", "ff02::fb", "ff02::1:2",
]  # fmt: skip


@pytest.mark.parametrize("address", CLASSES)
def test_what_everybody_has_stays(address: str) -> None:
    packed = ipaddress.ip_address(address).packed

    assert OTHER.address(packed) == packed


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.31.9.9", "192.168.1.1", "169.254.7.7", "239.1.2.3", "100.64.1.1", "8.8.8.8", "fd00:1::2",
     "fe80::5054:ff:fe12:3456", "ff05::1234:5678", "2a00:1450:1::1", "::ffff:8.8.4.4", "ff02::1:ff12:3456"],
)  # fmt: skip
def test_an_address_stays_in_its_class_and_is_another(address: str) -> None:
    one = ipaddress.ip_address(address)

    other = ipaddress.ip_address(OTHER.address(one.packed))

    assert other != one
    for kind in ("is_private", "is_multicast", "is_link_local", "is_loopback", "is_global", "is_reserved"):
        assert getattr(other, kind) == getattr(one, kind)


def test_ethernet_addresses_keep_whether_they_are_a_groups() -> None:
    one, group, all_ = (bytes.fromhex(t) for t in ("005056aabbcc", "01005e0000fb", "ffffffffffff"))

    assert OTHER.address(one)[0] & 3 == 2
    assert OTHER.address(one)[1:] != one[1:]
    assert OTHER.address(group)[:3] == group[:3]
    assert OTHER.address(all_) == all_


def redacted(frame: bytes, **fields: int) -> bytes:
    row = _facts(facts_row(frame, packet=1, **fields), OTHER)
    return row["headers"][0, : row["caplen"][0]].tobytes()


def ip4(proto: int, payload: bytes, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 20 + len(options) + len(payload), 1, 0, 64, proto, 0xBEEF)
    return head + socket.inet_aton("198.51.100.1") + socket.inet_aton("198.51.100.2") + options + payload


SECRET = b"\xc6\x33\x64\x07"  # 198.51.100.7
INSIDE = {
    "options of IPv4": ip4(17, bytes(8), b"\x83\x07\x04" + SECRET + b"\0"),
    "what ICMP quotes": ip4(1, b"\x03\x03\0\0\0\0\0\0" + ip4(17, SECRET * 4)),
    "a redirect's gateway": ip4(1, b"\x05\x01\0\0" + SECRET + bytes(8)),
    "options of TCP": ip4(6, bytes(12) + b"\x60\x02\0\0\0\0\0\0" + SECRET),
    "a tunnel": ip4(4, ip4(17, SECRET)),
    "a payload": ip4(17, bytes(8) + SECRET),
    "a later fragment": ip4(17, SECRET)[:6] + b"\x20\x01" + ip4(17, SECRET)[8:],
    "a protocol nobody knows": ip4(200, SECRET),
    "no packet at all": b"\x00" + SECRET,
    "routing of IPv6": struct.pack(">IHBB", 6 << 28, 24, 43, 64) + bytes(32) + b"\x11\x02\x04\x00" + SECRET * 5,
    "options of IPv6": struct.pack(">IHBB", 6 << 28, 8, 0, 64) + bytes(32) + b"\x3a\x00" + SECRET + b"\0\0",
    "what is asked for by ICMPv6": struct.pack(">IHBB", 6 << 28, 24, 58, 64)
    + bytes(32)
    + b"\x87\0\0\0\0\0\0\0"
    + SECRET * 4,
}


@pytest.mark.parametrize("what", INSIDE)
def test_no_address_hides_in(what: str) -> None:
    packet = INSIDE[what]
    ethertype = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"

    for data in (redacted(packet, link=101), redacted(bytes(12) + ethertype + packet)):
        assert SECRET not in data


def test_ports_flags_and_lengths_stay() -> None:
    frame = (
        bytes(12)
        + b"\x08\x00"
        + ip4(6, struct.pack(">HHIIBBHHH", 443, 5000, 7, 8, 0x50, 0x12, 900, 0xDEAD, 0) + b"GET")
    )

    kept = redacted(frame)

    assert len(kept) == 14 + 40
    assert kept[34:50] == frame[34:50]
    assert kept[50:52] == kept[24:26] == b"\0\0"  # checksums
    row = _facts(facts_row(frame, packet=1), OTHER)
    assert row["len"][0] == len(frame)
    assert flows(row).flow[0].startswith("tcp ")
    assert flows(row).sport[0] == 443


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("", ""),
        ("udp port 53", "udp port 53"),
        (
            "tcp[tcpflags] & tcp-syn != 0 and not (arp or port https)",
            "tcp[tcpflags] & tcp-syn != 0 and not (arp or port https)",
        ),
        ("host 127.0.0.1", "host 127.0.0.1"),
        ("host www.example.com", "(redacted)"),
        ("host 3405803785", "(redacted)"),
        ("net 10.1", "(redacted)"),
        ("ip[12:4] = 0xc6336407", "(redacted)"),
        ("tcp[13] = 0xc6336407", "(redacted)"),
    ],
)
def test_a_filter_keeps_what_names_nothing(expression: str, shown: str) -> None:
    assert redacted_filter(expression, OTHER) == shown


def test_a_filter_has_the_packets_new_addresses(office: Recording) -> None:
    redacted = office.redact(KEY)

    server = redacted.packets["dst"].iat[0]
    assert redacted.start.filter == f"host {server} and port 53" != office.start.filter
    assert len(redacted.where(redacted.start.filter).packets) == 8
    assert json.loads(json.dumps(redacted.start.raw))["options"]["filter"] == redacted.start.filter
