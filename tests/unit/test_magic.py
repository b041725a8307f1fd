"""`%load_ext bpfpath_nb` in a real IPython shell."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from IPython.core.history import HistoryAccessor
from IPython.core.interactiveshell import InteractiveShell

import bpfpath_nb
from bpfpath_nb import frame_display, magic
from bpfpath_nb.errors import BpfpathError, FilterError, OptionError


@pytest.fixture
def shell(monkeypatch):
    monkeypatch.setattr(HistoryAccessor, "enabled", False)
    shell = InteractiveShell()
    yield shell
    shell.extension_manager.unload_extension("bpfpath_nb")
    InteractiveShell.clear_instance()


def test_the_names_are_the_notebooks(shell, capsys):
    shell.run_line_magic("load_ext", "bpfpath_nb")
    for name in magic.NAMES:
        assert shell.user_ns[name] is getattr(bpfpath_nb, name)
    assert capsys.readouterr().out == ""
    shell.run_line_magic("who", "")
    assert "Interactive namespace is empty." in capsys.readouterr().out


def test_a_name_that_the_user_has_stays_the_users(shell, capsys):
    shell.user_ns["Recording"] = "mine"
    shell.run_line_magic("load_ext", "bpfpath_nb")
    assert shell.user_ns["Recording"] == "mine"
    assert "bpfpath_nb.Recording" in capsys.readouterr().out
    shell.run_line_magic("unload_ext", "bpfpath_nb")
    assert shell.user_ns["Recording"] == "mine"


def test_unloading_takes_back_only_what_is_still_ours(shell):
    shell.run_line_magic("load_ext", "bpfpath_nb")
    shell.user_ns["doctor"] = "mine"
    shell.run_line_magic("unload_ext", "bpfpath_nb")
    assert [name for name in magic.NAMES if name in shell.user_ns] == ["doctor"]


def test_reloading_changes_nothing(shell, capsys):
    shell.run_line_magic("load_ext", "bpfpath_nb")
    shell.run_line_magic("reload_ext", "bpfpath_nb")
    assert all(shell.user_ns[name] is getattr(bpfpath_nb, name) for name in magic.NAMES)
    assert "left alone" not in capsys.readouterr().out


def shown(shell, frame):
    return shell.display_formatter.format(frame)[0]


@pytest.mark.parametrize("name", ["df", "transitions", "quality"])
def test_durations_are_shown_in_microseconds_and_all_else_as_pandas_shows_it(shell, name):
    frame = getattr(bpfpath_nb.sample("dns"), name)
    frame = frame.to_frame() if name == "quality" else frame
    by_pandas = shown(shell, frame)
    shell.run_line_magic("load_ext", "bpfpath_nb")
    by_us = shown(shell, frame)
    if name != "quality":
        assert "0 days" in by_pandas["text/html"]
        assert re.search(r"<td>\d+\.\d{3} us</td>", by_us["text/html"])
    assert "0 days" not in "".join(by_us.values())
    same = {mime: re.sub(r"\d days [\d:.]+", "*", text) for mime, text in by_pandas.items()}
    assert re.sub(r"[\d,]+\.\d{3} us", "*", by_us["text/html"]) == same["text/html"]
    assert by_us["text/plain"].count("\n") == same["text/plain"].count("\n")
    shell.run_line_magic("unload_ext", "bpfpath_nb")
    assert shown(shell, frame) == by_pandas


@pytest.mark.parametrize(
    ("duration", "expected"),
    [("12345 ns", "12.345 us"), ("-2 s", "-2,000,000.000 us"), ("1 h", "0 days 01:00:00"), ("NaT", "NaT")],
)
def test_a_duration_below_an_hour_is_written_in_microseconds(duration, expected):
    assert frame_display.microseconds(pd.Timedelta(duration)) == expected


def test_long_texts_are_cut_and_columns_of_one_name_are_left_to_pandas(shell):
    long = pd.DataFrame({"path": ["x" * 300], "took": [pd.Timedelta("1us")]})
    twice = pd.DataFrame([[pd.Timedelta("1us"), "text"]], columns=["same", "same"])
    by_pandas = shown(shell, long)["text/plain"], shown(shell, twice)
    shell.run_line_magic("load_ext", "bpfpath_nb")
    assert shown(shell, long)["text/plain"].count("x") == by_pandas[0].count("x")
    assert shown(shell, twice) == by_pandas[1]


def test_how_the_user_shows_frames_stays(shell):
    formatter = shell.display_formatter.formatters["text/html"]
    formatter.for_type(pd.DataFrame, lambda frame: "mine")
    shell.run_line_magic("load_ext", "bpfpath_nb")
    shell.run_line_magic("unload_ext", "bpfpath_nb")
    assert shown(shell, pd.DataFrame({"a": [pd.Timedelta("1us")]}))["text/html"] == "mine"


def test_a_name_that_is_a_module_too_means_the_function():
    import bpfpath_nb.doctor

    assert callable(bpfpath_nb.doctor)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Captrue'"):
        _ = bpfpath_nb.Captrue
    assert {"Capture", "Filter", "Recording", "doctor"} <= set(dir(bpfpath_nb))


@pytest.fixture
def loaded(shell):
    shell.run_line_magic("load_ext", "bpfpath_nb")
    return shell


def run(shell, code):
    """The code as a cell; its error, if any."""
    result = shell.run_cell(code)
    return result.error_before_exec or result.error_in_exec


def test_the_help_lists_the_options(loaded, capsys):
    loaded.run_line_magic("pinfo", "%bpfpath")
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--functions", "--namespaces", "--match", "--returns", "--settle", "-o"))
    assert run(loaded, "%bpfpath -h") is None
    assert "--functions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        ("%%bpfpath udp --colour red\n1", OptionError, "--colour"),
        ("%%bpfpath udp -c many\n1", OptionError, "many"),
        ("%%bpfpath 'udp\n1", OptionError, "No closing quotation"),
        ("%%bpfpath udp -o 7up\n1", OptionError, "'7up'"),
        ("%%bpfpath udp -o class\n1", OptionError, "'class'"),
        ("%%bpfpath udp --settle -1\n1", OptionError, "--settle"),
        ("%%bpfpath stop\n1", OptionError, "no cell"),
        ("%%bpfpath udp prot 53 -o cap\nran = True", FilterError, "udp prot 53"),
        ("%bpfpath udp port $port -t 1", FilterError, "udp port $port"),
        ("%bpfpath udp port {port} -t 1", FilterError, "udp port {port}"),
    ],
)
def test_a_mistake_is_one_typed_message(loaded, capsys, code, kind, told):
    loaded.user_ns["port"] = 53
    error = run(loaded, code)
    shown = capsys.readouterr().out
    assert type(error) is kind
    assert shown.startswith(f"{kind.__name__}: ")
    assert told in shown
    assert "Traceback" not in shown
    assert "magic.py" not in shown
    assert {"ran", "cap"} & set(loaded.user_ns) == set()


def test_a_cell_that_does_not_parse_is_refused_before_anything_is_attached(loaded, capsys):
    error = run(loaded, "%%bpfpath udp -o cap\nx = (\n")
    assert isinstance(error, SyntaxError)
    assert "x = (" in capsys.readouterr().out
    assert "cap" not in loaded.user_ns


@pytest.mark.parametrize(
    ("code", "awaited"),
    [
        ("%%bpfpath udp\nawait x", True),
        ("%%bpfpath udp\nasync with x:\n    pass", True),
        ("%%bpfpath udp\nimport x", False),
        ("%%bpfpath udp\nasync def f():\n    await x", False),
        ("%%bpfpath udp\nawait (", False),
        ("%%time\nawait x", False),
    ],
)
def test_a_cell_that_awaits_is_awaited(loaded, code, awaited):
    assert loaded.transform_cell(code).startswith("await get_ipython()") is awaited
    loaded.run_line_magic("reload_ext", "bpfpath_nb")
    assert loaded.transform_cell(code).count("await get_ipython()") == awaited
    loaded.run_line_magic("unload_ext", "bpfpath_nb")
    assert not loaded.transform_cell(code).startswith("await get_ipython()")


def test_nothing_runs(loaded, capsys):
    assert run(loaded, "running = %bpfpath list") is None
    assert list(loaded.user_ns["running"].columns) == ["name", "filter", "state", "seconds", "packets", "hops", "lost"]
    assert loaded.user_ns["running"].empty
    run(loaded, "%bpfpath stop")
    assert "no capture is running" in capsys.readouterr().out


def test_doctor(loaded):
    run(loaded, "found = %bpfpath doctor")
    assert loaded.user_ns["found"].verdict == bpfpath_nb.doctor().verdict


def test_unloading_takes_the_magic_back(loaded, capsys):
    loaded.run_line_magic("unload_ext", "bpfpath_nb")
    assert not isinstance(run(loaded, "%bpfpath list"), BpfpathError)
    assert "not found" in capsys.readouterr().err
