"""`%load_ext bpfpath_nb` in a real IPython shell."""

from __future__ import annotations

import pytest
from IPython.core.history import HistoryAccessor
from IPython.core.interactiveshell import InteractiveShell

import bpfpath_nb
from bpfpath_nb import magic


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


def test_a_name_that_is_a_module_too_means_the_function():
    import bpfpath_nb.doctor

    assert callable(bpfpath_nb.doctor)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Captrue'"):
        _ = bpfpath_nb.Captrue
    assert {"Capture", "Filter", "Recording", "doctor"} <= set(dir(bpfpath_nb))
