"""The panels, driven from Python: what is set in a control shows in what the panel says.

That a browser shows them is for tests/browser to see.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ipywidgets
import pandas as pd
import pytest
from streams import capture

from bpfpath_nb import compare, sample
from bpfpath_nb.check_notebook import WIDGET
from bpfpath_nb.errors import OptionError
from bpfpath_nb.recording import Recording
from bpfpath_nb.widgets import compare_widget, live
from bpfpath_nb.widgets.explorer import Explorer, asks_for_columns
from bpfpath_nb.widgets.rows import Rows


@pytest.fixture(scope="module")
def dns() -> Recording:
    return sample("dns")


@pytest.fixture(scope="module")
def explorer(dns: Recording) -> Explorer:
    return dns.explore()


def chosen(rows: Rows, position: int) -> None:
    rows._list.index = position


# -- Rows


def rows(frame: pd.DataFrame, **options: Any) -> tuple[Rows, list[int]]:
    found: list[int] = []
    return Rows(frame, ["flow", "hops", "total", "verdict", "reason"], found.append, **options), found


def test_pages_cover_all_rows_in_order(dns: Recording) -> None:
    made, _ = rows(dns.packets, page=10)
    seen = made.shown.index.tolist()
    while not made._on.disabled:
        made._on.click()
        seen += made.shown.index.tolist()
    assert seen == dns.packets.index.tolist()
    assert made._where.value == "21 to 27 of 27"
    made._back.click()
    assert made._where.value == "11 to 20 of 27"


@pytest.mark.parametrize("column", ["flow", "hops", "total", "verdict", "reason"])
def test_sorting_is_that_of_the_values_with_what_is_missing_last(dns: Recording, column: str) -> None:
    made, _ = rows(dns.packets, page=100)
    values = dns.packets[column].astype(object)
    for largest_first in (False, True):
        made._sort.value, made._down.value = column, largest_first
        expected = values.sort_values(ascending=not largest_first, kind="stable", na_position="last")
        assert made.shown[column].astype(str).tolist() == expected.astype(str).tolist()


def test_a_row_that_is_chosen_is_told_by_its_place_in_the_frame(dns: Recording) -> None:
    made, found = rows(dns.packets, page=10)
    made._keep.value = "verdict == 'dropped'"
    chosen(made, 1)
    assert dns.packets.index[found].tolist() == [26]
    assert "of 3 (of 27 in all)" in made._where.value


def test_other_rows_choose_nothing_by_themselves(dns: Recording) -> None:
    made, found = rows(dns.packets, page=10)
    chosen(made, 3)
    made._keep.value = "verdict == 'dropped'"
    made._sort.value = "total"
    assert found == [3]
    assert made._list.value is None


def test_a_wrong_filter_is_told_and_all_rows_stay(dns: Recording) -> None:
    made, _ = rows(dns.packets)
    made._keep.value = "colour == 'red'"
    assert "colour" in made._error.value
    assert "of 27" in made._where.value
    made._keep.value = ""
    assert made._error.value == ""


def test_an_empty_frame_has_no_rows(dns: Recording) -> None:
    made, _ = rows(dns.packets.head(0))
    assert made._where.value == "0 to 0 of 0"
    assert made._list.options == ()


# -- explore


def test_the_packet_that_is_chosen_is_shown_with_its_hops_and_its_timeline(dns: Recording, explorer: Explorer) -> None:
    explorer.packet = 1
    before = explorer._picture.value
    explorer.filter("verdict == 'dropped'")
    chosen(explorer._rows["packets"], 0)
    assert explorer.packet == 25
    assert "NETFILTER_DROP in nft_do_chain" in explorer._title.value
    assert explorer._hops.value.count("<tr>") == 1 + dns.packets.at[25, "hops"]
    assert bytes(explorer._picture.value).startswith(b"\x89PNG")
    assert explorer._picture.value != before


def test_neighbours_are_the_packets_of_the_same_path(dns: Recording, explorer: Explorer) -> None:
    paths = dns.packets["path"]
    alike = paths.index[paths == paths.at[23]].tolist()
    explorer.packet = 23
    assert explorer._neighbours.frame.index.tolist() == alike
    assert len(alike) > 1
    chosen(explorer._neighbours, 1)
    assert explorer.packet == alike[1]


@pytest.mark.parametrize(
    ("expression", "packets"),
    [
        ("udp src port 53", 12),
        ("verdict == 'dropped' and hops < 30", 2),
        ("host 10.0.1.2", 1),
        ("udp", 27),
        ("icmp", 0),
    ],
)
def test_packets_are_narrowed_down_by_either_language(explorer: Explorer, expression: str, packets: int) -> None:
    explorer.filter(expression)
    rows = explorer._rows["packets"]
    assert len(rows._order) == packets
    assert rows._error.value == ""
    explorer.filter("")


def test_a_filter_of_neither_language_is_told(explorer: Explorer) -> None:
    explorer.filter("udp prot 53")
    assert "syntax error" in explorer._rows["packets"]._error.value
    explorer.filter("")


def test_columns_and_packet_filters_are_told_apart(dns: Recording) -> None:
    assert all(asks_for_columns(query, dns.packets) for query in ("hops > 5", "packet == 3", "total > '1ms'"))
    assert not any(asks_for_columns(query, dns.packets) for query in ("udp", "ip[0] & 0xf > 5", "1 == 1", "host a", ""))


def test_paths_functions_and_drops_lead_to_a_packet(dns: Recording, explorer: Explorer) -> None:
    chosen(explorer._rows["paths"], 2)
    assert dns.packets.at[explorer.packet, "path"] == dns.paths.index[2]
    chosen(explorer._rows["drops"], 2)
    assert explorer.packet == dns.drops["packet"].iloc[2]
    chosen(explorer._rows["functions"], 1)
    gaps = dns.df[dns.df["func"] == dns.functions.index[1]]["gap"]
    assert explorer.packet == gaps.idxmax()[0]


def test_a_packet_that_is_not_there_is_an_error(explorer: Explorer) -> None:
    with pytest.raises(OptionError, match="numbered 1 to 27"):
        explorer.packet = 99


def test_nothing_to_explore() -> None:
    empty = capture(0).recording().explore()
    assert empty.packet == 0
    assert "0 to 0 of 0" in empty.snapshot().html


def test_a_saved_panel_leaves_html_and_text(explorer: Explorer) -> None:
    explorer.packet = 25
    bundle = explorer._repr_mimebundle_()
    assert {WIDGET, "text/html", "text/plain"} <= set(bundle)
    page = bundle["text/html"]
    assert 'src="data:image/png;base64,' in page
    assert "NETFILTER_DROP in nft_do_chain" in page
    assert "<script" not in page
    assert len(page) < 200_000
    assert "packet 25" in bundle["text/plain"]
    assert explorer.snapshot()._repr_html_() == page


# -- compare_widget


def test_namespaces_are_compared_as_compare_does(dns: Recording) -> None:
    panel = dns.compare_namespaces()
    panel.choose("namespaces", "client", "server")
    assert panel.comparison is not None
    assert panel.comparison.summary == compare(dns, netns=("client", "server")).summary
    assert panel._told.value == panel.comparison._repr_html_()


def test_two_packets_are_aligned(dns: Recording) -> None:
    panel = compare_widget(dns)
    panel.choose("packets", 3, 25)
    assert "nft_do_chain_inet" in panel._aligned.value
    assert panel._aligned.value.count("<tr>") > 30
    assert "dropped" in panel.snapshot().html


def test_two_paths_and_two_recordings(dns: Recording) -> None:
    dropped = dns.query("verdict == 'dropped'")
    panel = compare_widget(dns, dropped)
    assert "before" in panel._told.value
    panel.choose("paths", dns.paths.index[0], dropped.paths.index[0])
    assert panel.comparison is not None
    assert panel.comparison.names == (dns.paths.index[0], dropped.paths.index[0])


def test_a_choice_that_cannot_be_compared_is_told(dns: Recording) -> None:
    panel = compare_widget(dns)
    panel.choose("packets", 3, 99)
    assert panel.comparison is None
    assert "99" in panel._error.value
    assert compare_widget(capture(0).recording())._error.value != ""


# -- live


def test_mistakes_in_the_filter_show_as_it_is_typed() -> None:
    panel = live("udp")
    panel._filter.value = "udp prot"
    deadline = time.monotonic() + 5
    while not panel._error.value and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "syntax error" in panel._error.value
    assert panel._start.disabled
    panel._filter.value = "udp port 53"
    while panel._error.value and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not panel._start.disabled
    panel.close()


def test_an_option_that_capture_does_not_have() -> None:
    with pytest.raises(OptionError, match="colour"):
        live("udp", colour="red")


def test_core_controls_only(dns: Recording, explorer: Explorer) -> None:
    def parts(widget: Any) -> set[str]:
        inner = [parts(child) for child in getattr(widget, "children", ())]
        return {widget._model_module}.union(*inner)

    for panel in (explorer, dns.compare_namespaces(), live()):
        assert parts(panel) <= {"@jupyter-widgets/base", "@jupyter-widgets/controls"}
    assert ipywidgets.__version__ >= "8"


def test_no_name_of_ours_hides_one_of_ipywidgets(dns: Recording, explorer: Explorer) -> None:
    """A `_compare` of ours once did, and front ends could no longer set anything."""
    theirs = set(dir(ipywidgets.VBox()))
    for panel in (explorer, dns.compare_namespaces(), live(), explorer._rows["packets"]):
        kinds = [kind for kind in type(panel).__mro__ if kind.__module__.startswith("bpfpath_nb")]
        functions = {name for kind in kinds for name, value in vars(kind).items() if callable(value)}
        fields = set(vars(panel)) - set(vars(ipywidgets.VBox()))
        hidden = (functions | fields) & theirs
        assert hidden <= {"__init__", "close", "_repr_mimebundle_"}


# -- a million hops


def seconds(act: Callable[[], object]) -> float:
    """Processor time that an action keeps the notebook waiting for. The machine may have more to do."""
    began = time.thread_time()
    act()
    return time.thread_time() - began


def drawn(explorer: Explorer, packet: int) -> float:
    """The same for the picture of a packet; the least of three, since a busy machine has a slower processor."""
    times = []
    for _ in range(3):
        explorer.packet = 25
        times.append(seconds(lambda: setattr(explorer, "packet", packet)))
    return min(times)


def test_a_million_hops_react_within_a_second(explorer: Explorer) -> None:
    recording = capture(82_000).recording()
    assert len(recording) > 1_000_000
    panel = recording.explore()
    packets = panel._rows["packets"]
    took = {
        "packet": seconds(lambda: setattr(panel, "packet", 4711)),
        "pcap": seconds(lambda: panel.filter("udp src port 40007")),
        "query": seconds(lambda: panel.filter("verdict == 'dropped' and hops > 5")),
        "sort": seconds(lambda: setattr(packets._sort, "value", "flow")),
        "page": seconds(packets._on.click),
        "path": seconds(lambda: chosen(panel._rows["paths"], 2)),
        "function": seconds(lambda: chosen(panel._rows["functions"], 2)),
        "drop": seconds(lambda: chosen(panel._rows["drops"], 2)),
        "snapshot": seconds(panel.snapshot),
        "a packet of 64 hops": drawn(explorer, 1),
    }
    comparer = compare_widget(recording)
    took["comparer, first display"] = seconds(comparer._repr_mimebundle_)
    assert comparer.finished(120)
    took["two packets"] = seconds(lambda: comparer.choose("packets", 3, 4711))
    assert comparer.comparison is not None
    assert {what: round(time, 2) for what, time in took.items() if time > 1.0} == {}


def test_many_hops_are_compared_in_a_thread_and_a_new_choice_takes_the_place_of_the_old() -> None:
    before, after = capture(12_000, seed=1).recording(), capture(12_000, seed=2).recording()
    panel = compare_widget(before, after)
    began = seconds(lambda: panel.choose("namespaces", "client", "router"))
    assert "comparing" in panel._told.value
    assert panel.finished(60)
    assert began < 1
    assert panel.comparison is not None
    assert panel.comparison.names == ("client", "router")
    assert panel._told.value == panel.comparison._repr_html_()
    assert panel.comparison.summary == compare(before, after, netns=("client", "router")).summary


def test_a_snapshot_waits_for_a_comparison_in_a_thread() -> None:
    panel = compare_widget(capture(12_000, seed=1).recording(), capture(12_000, seed=2).recording())
    assert "Compared 12000 packets of before with 12000 of after" in panel.snapshot().html
