"""What people see: plain text and static HTML, small, whole, and safe whatever a packet or a process calls itself."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
from streams import (
    CLIENT,
    DEVICES,
    END,
    ENTRY,
    KINDS,
    LAST,
    Capture,
    capture,
    facts_row,
    hop,
    of_hops,
    start_record,
    udp_frame,
)  # fmt: skip

from bpfpath_nb import compare
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.errors import OptionError
from bpfpath_nb.html.frame import frame_html
from bpfpath_nb.html.summary import summary_html
from bpfpath_nb.io.summary import packet_lines
from bpfpath_nb.io.text import columns
from bpfpath_nb.recording import Recording
from bpfpath_nb.samples import sample
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE
from bpfpath_nb.start import StartRecord

EMPTY = Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {})
HOSTILE = '<script>alert("x")</script>&<img src=x onerror=y>'


class Page(html.parser.HTMLParser):
    """What a page holds: its tags, and its text as it reads without any styling."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def hostile() -> Recording:
    """A recording in which everything that others choose is hostile."""
    made = capture(5).recording().events
    raw = start_record(filter=HOSTILE, host=HOSTILE, release=HOSTILE, machine=HOSTILE, ladder=HOSTILE)
    raw["reasons"] = {"8": HOSTILE, "3": HOSTILE}
    raw["functions"] = [function | {"name": HOSTILE} for function in raw["functions"]]
    return Recording(
        Events.build(
            StartRecord.from_dict(raw), dict(made.hops), made.facts,
            processes=[(77, HOSTILE)], devices=[(*device[:3], HOSTILE) for device in DEVICES],
            locations=[(address, HOSTILE, 0) for address in made.locations], end={"reason": HOSTILE},
        )
    )  # fmt: skip


def test_a_path_reads_as_it_should():
    made = capture(len(KINDS), seed=0)
    number = int(np.flatnonzero(made.kinds == "filtered")[0]) + 1
    text = made.recording().text(number)
    head, end, second, columns, *hops = text.splitlines()
    assert head == f"packet {number}  udp 10.0.1.2:{39999 + number} > 10.0.2.2:53  70 bytes"
    assert end == "    dropped: NETFILTER_DROP in nf_hook_slow"
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{9} UTC  path [0-9a-f]{12}  client > router  9 hops in [0-9.]+ us", second)
    assert columns.split() == ["since/us", "gap/us", "netns", "dev", "cpu", "function"]
    assert [line.split()[-1] for line in hops[:-1]] == [hop[0].split(".")[0] for hop in KINDS["filtered"][:-1]]
    assert hops[0].split()[0] == "0.000"
    assert hops[-1].split()[-2:] == ["kfree_skb", "NETFILTER_DROP"]
    assert all(len(line) <= 80 for line in text.splitlines())
    since = [float(line.split()[0]) for line in hops]
    gaps = [float(line.split()[1]) for line in hops[:-1]]
    np.testing.assert_allclose(np.cumsum(gaps), since[1:], atol=1e-6)


def test_wide_names_keep_the_columns_in_line():
    made = capture(len(KINDS), seed=0).recording().events
    devices = [(*row[:3], {"client": "名前", "router": "e\u0301"}.get(row[3], row[3])) for row in DEVICES]
    events = Events.build(made.start, dict(made.hops), made.facts, devices=devices)
    lines = Recording(events).text(1).splitlines()
    header = next(line for line in lines if "gap/us" in line)
    rows = lines[lines.index(header) + 1 :]
    assert columns("名前") == 4
    assert columns("e\u0301") == 1
    assert {columns(line[: line.index("名前")]) for line in rows if "名前" in line} == {header.index("netns")}
    assert len({columns(line) - len(line.split()[-1]) for line in rows[:6]}) == 1


def test_all_packets_are_bounded_and_say_so():
    recording = capture(60).recording()
    assert recording.text().count("\npacket ") + 1 == 50
    assert "10 more packets" in recording.text()
    assert recording.text(limit=60).count("since/us") == 60
    assert "more" not in recording.text(limit=60)


def test_an_unknown_packet_is_an_error_that_says_which_there_are():
    with pytest.raises(OptionError, match="numbered 1 to 7"):
        capture(7).recording().text(8)
    with pytest.raises(OptionError, match="nothing was captured"):
        EMPTY.recording().text(1)
    assert EMPTY.recording().text() == "no packets"


def test_a_terminal_is_safe_from_names():
    recording = hostile()
    for text in (recording.text(), repr(recording)):
        assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "recording", [EMPTY.recording(), capture(300).recording(), hostile()], ids=["empty", "full", "hostile"]
)
def test_the_page_is_static_and_well_formed(recording):
    page = recording._repr_html_()
    parsed = Page(page)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.tags} <= {
        "div",
        "p",
        "b",
        "br",
        "code",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "pre",
    }
    assert {name for _, attributes in parsed.tags for name in attributes} <= {"style", "border"}
    assert not re.search(r"https?:|url\(", page)
    assert len(page.encode()) < 200_000


def test_the_page_tells_what_matters():
    made = capture(30)
    text = Page(made.recording()._repr_html_()).text
    assert "udp port 53" in text
    assert "6.18.0-test" in text
    assert "1 refused" in text
    assert "30 in " in text
    for verdict in ("delivered", "dropped", "sent", "consumed", "unfinished"):
        assert re.search(rf"\d+ {verdict}", text)
    assert "and 10 more packets" in text
    assert "dropped: NETFILTER_DROP in nf_hook_slow" in text
    assert "client > router > server" in text


def test_hostile_values_are_shown_as_they_are():
    assert HOSTILE in Page(hostile()._repr_html_()).text
    assert "<script" not in hostile()._repr_html_()


def test_a_capture_shows_its_state():
    page = Page(summary_html(capture(1).recording(), status="capturing <now>", name="Capture"))
    assert "capturing <now>" in page.text
    assert page.text.startswith("Capture")


def test_the_longest_values_stay_within_the_limit():
    made = capture(300).recording().events
    raw = start_record(filter="(" * 100_000)
    events = Events.build(
        StartRecord.from_dict(raw),
        dict(made.hops),
        made.facts,
        devices=[(0, CLIENT, 0, "n" * 100_000), (0, CLIENT, 2, "&" * 9999)],
    )
    assert len(Recording(events)._repr_html_()) < 200_000


@pytest.mark.parametrize("recording", [EMPTY.recording(), capture(300, lost=0.02).recording(), sample("dns")])
def test_a_terminal_of_80_columns_shows_a_recording_whole(recording):
    assert max(map(len, repr(recording).splitlines())) <= 80


def test_a_long_filter_and_headline_are_folded():
    made = capture(20, lost=0.1)
    ports = " or ".join(f"port {port}" for port in range(40))
    recording = made.recording(filter=ports)
    lines = repr(recording).splitlines()
    assert max(map(len, lines)) <= 80
    filter_lines = lines[1 : next(at for at, line in enumerate(lines) if line.startswith("kernel"))]
    assert " ".join(" ".join(filter_lines).split()) == f"filter {ports}"
    headline = repr(recording.diagnose()).split("\n\n")[0]
    assert "The capture is not whole" in " ".join(headline.split())
    assert max(map(len, headline.splitlines())) <= 80
    assert max(map(len, repr(made.recording(filter="(" * 100_000)).splitlines())) <= 80


def test_a_flow_of_ordinary_width_stays_on_its_line():
    frame = udp_frame(40000, 55555, "192.168.1.10", "192.168.1.20")
    hops = [hop("netif_rx", ENTRY), hop("consume_skb", END | LAST)]
    (line,) = packet_lines(of_hops(*hops, facts=facts_row(frame)).packets, 9)[1:]
    assert line.split()[-3:] == ["2", "1.000", "consumed"]
    assert "192.168.1.20:55555  " in line


def test_a_fragment_was_not_copied():
    (second,) = (
        line
        for line in of_hops(hop("netif_rx", ENTRY), facts=facts_row(udp_frame(1, 2), parent=7)).text(1).splitlines()
        if "packet 7" in line
    )
    assert "made of packet 7" in second


def test_text_and_page_tell_the_same():
    recording = sample("dns")
    text, page = repr(recording), Page(recording._repr_html_()).text
    for told in (
        "24 delivered, 3 dropped",
        "NETFILTER_DROP",
        "nft_do_chain",
        "NO_SOCKET",
        "__udp4_lib_rcv",
        str(recording.packets["flow"].iloc[0]),
        f"{recording.packets['total'].iloc[0].value / 1000:.3f}",
        *recording.paths.index[:5],
    ):
        assert told in text
        assert told in page


def test_an_outcome_without_room_has_a_line_of_its_own():
    recording = sample("dns")
    lines = packet_lines(recording.packets.loc[[1, 25]], 9)
    assert [line.split()[0] for line in lines] == ["packet", "1", "25", "dropped:"]
    assert lines[-1].strip() == "dropped: NETFILTER_DROP in nft_do_chain"


def test_long_flows_and_findings_fit_into_a_terminal():
    cases = Recording.load(Path(__file__).parents[1] / "recordings" / "cases-6.18.parquet")
    dns = sample("dns")
    commands = ("    $ ", "__")  # a command stays one line, and so does the row of a function with a long name
    for shown in (repr(cases), repr(dns.diagnose()), repr(compare(dns, netns=("client", "server")))):
        assert [line for line in shown.splitlines() if len(line) > 82 and not line.startswith(commands)] == []
    lines = repr(cases).splitlines()
    (at,) = [at for at, line in enumerate(lines) if "fe80::84f2" in line]
    assert lines[at + 1].split() == ["12", "16.654", "consumed"]


def test_a_loss_is_told_in_text_and_page():
    recording = capture(300, lost=0.02).recording()
    told = f"{recording.quality['events_lost']} events were lost"
    assert f"LOST     {told}" in repr(recording)
    assert told in Page(recording._repr_html_()).text
    assert "(may lack hops)" in repr(recording)


def test_a_kernel_without_kprobes_is_told_in_a_line():
    why = "no kprobes here: between TC and socket nothing is seen"
    recording = capture(1).recording(refused=[{"name": "kprobes", "why": why, "instead": "tracepoints"}])
    assert f"limits   {why}" in repr(recording).splitlines()
    assert why in Page(recording._repr_html_()).text
    assert recording.quality["not_traced"] == "kprobes (tracepoints instead)"


def test_each_path_unfolds_to_a_packet_that_took_it():
    recording = sample("dns")
    page = recording._repr_html_()
    for path in recording.paths.index:
        part = page.partition(f"<summary>path {path}:")[2].partition("</details>")[0]
        number = int(re.search(r"packet (\d+) ", part)[1])
        assert recording.packets.at[number, "path"] == path


def test_a_frame_of_any_kind_is_a_table_of_what_it_says():
    recording = sample("dns")
    made = Page(frame_html(recording.functions, 2))
    first = recording.functions.iloc[0]
    assert "gap_p50/us" in made.words
    assert f"{first['gap_p50'].value / 1000:.3f}" in made.words
    assert "duration_p50/us" not in made.words  # no value in it
    assert f"… and {len(recording.functions) - 2} more rows" in made.text
    drops = Page(frame_html(recording.drops))
    assert f"{recording.drops['time'].iloc[0]:%H:%M:%S}" in drops.text
    assert Page(frame_html(EMPTY.recording().drops)).open == []
