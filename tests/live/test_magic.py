"""`%%bpfpath` in a real IPython shell, with real DNS queries."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from IPython.core.history import HistoryAccessor
from IPython.core.interactiveshell import InteractiveShell

from bpfpath_nb.capture import running
from bpfpath_nb.errors import NamespaceError
from bpfpath_nb.lab import Lab

ASK = "lab.run('client', ['dig', '+short', '+time=1', '+tries=1', '@10.0.2.2', 'www.example.test', 'A'])"


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> Iterator[Any]:
    monkeypatch.setattr(HistoryAccessor, "enabled", False)
    shell = InteractiveShell()
    shell.run_line_magic("colors", "nocolor")
    shell.user_ns["lab"] = lab
    shell.run_line_magic("load_ext", "bpfpath_nb")
    yield shell
    shell.user_ns.pop("cap", None)
    shell.reset()
    shell.extension_manager.unload_extension("bpfpath_nb")
    InteractiveShell.clear_instance()


def run(shell: Any, code: str) -> BaseException | None:
    """The code as a cell; its error, if any."""
    result = shell.run_cell(code)
    error: BaseException | None = result.error_before_exec or result.error_in_exec
    return error


def here(lab: Lab) -> str:
    return "-n " + ",".join(lab.names.values())


def when(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Do something as soon as a condition holds, while the shell is busy."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_cell_is_captured_shown_and_bound(shell: Any, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    error = run(shell, f"%%bpfpath udp port 53 {here(lab)} -o cap\nx, y = '{{x}} $y', cap.status.state\n{ASK}.stdout")

    assert error is None
    assert (shell.user_ns["x"], shell.user_ns["y"]) == ("{x} $y", "capturing")
    cap, shown = shell.user_ns["cap"], capsys.readouterr().out
    assert cap.status.state == "stopped"
    assert cap.packets["verdict"].tolist() == ["delivered", "delivered"]
    assert shown.index("'10.0.2.2\\n'") < shown.index("Capture('udp port 53')")
    assert "udp 10.0.1.1:" in shown


def test_a_cell_may_await(shell: Any, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        f"%%bpfpath udp port 53 {here(lab)} -o cap\nimport asyncio\n"
        f"answered = await asyncio.to_thread(lambda: {ASK})\nawait asyncio.sleep(0, 'slept')"
    )
    assert run(shell, code) is None
    assert shell.user_ns["answered"].stdout == "10.0.2.2\n"
    shown = capsys.readouterr().out
    assert shown.index("'slept'") < shown.index("Capture('udp port 53')")
    assert shell.user_ns["cap"].packets["verdict"].tolist() == ["delivered", "delivered"]

    error = run(shell, f"%%bpfpath udp port 53 {here(lab)} -o cap\nawait asyncio.sleep(0)\nnothing / 0")

    shown = capsys.readouterr().out
    assert isinstance(error, NameError)
    assert "----> 3 nothing / 0" in shown
    assert "magic.py" not in shown
    assert running() == []


def test_an_error_in_the_cell_leaves_what_was_captured(
    shell: Any, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    error = run(shell, f"%%bpfpath udp port 53 {here(lab)} -o cap\n{ASK}\nnothing / 0\nafter = True")

    shown = capsys.readouterr().out
    assert isinstance(error, NameError)
    assert shown.index("Capture('udp port 53') stopped") < shown.index("NameError")
    assert "----> 3 nothing / 0" in shown
    assert "magic.py" not in shown
    assert "run_cell_magic" not in shown
    assert len(shell.user_ns["cap"].packets) == 2
    assert "after" not in shell.user_ns
    assert running() == []


def test_an_interrupt_in_the_cell_leaves_what_was_captured(
    shell: Any, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    thread = when(lambda: "asked" in shell.user_ns, lambda: os.kill(os.getpid(), signal.SIGINT))
    error = run(
        shell, f"%%bpfpath udp port 53 {here(lab)} -o cap\nimport time\n{ASK}\nasked = time.sleep(0.5)\ntime.sleep(60)"
    )
    thread.join()

    shown = capsys.readouterr().out
    assert isinstance(error, KeyboardInterrupt)
    assert shown.index("Capture('udp port 53') stopped") < shown.index("KeyboardInterrupt")
    assert len(shell.user_ns["cap"].packets) == 2
    assert running() == []


def test_a_packet_that_is_under_way_at_the_end_of_the_cell_is_waited_for(shell: Any, lab: Lab) -> None:
    code = (
        f"%%bpfpath icmp {here(lab)} -o cap\n"
        "pinging = lab.popen('client', ['ping', '-c', '4', '-i', '0.2', '10.0.2.2'])\n"
    )
    began = time.monotonic()
    assert run(shell, code + "import time; time.sleep(0.1)") is None
    cap = shell.user_ns["cap"]
    assert len(cap.packets) >= 2
    assert not (cap.packets["verdict"] == "unfinished").any()
    assert time.monotonic() - began < 15


def test_the_time_after_the_cell_is_bounded(shell: Any, lab: Lab) -> None:
    shell.user_ns["pinging"] = lab.popen("client", ["ping", "-i", "0.05", "10.0.2.2"])
    try:
        assert run(shell, f"%%bpfpath icmp {here(lab)} -o cap --settle 1\npass") is None
    finally:
        shell.user_ns["pinging"].kill()
    assert shell.user_ns["cap"].status.seconds < 3


def test_interrupting_what_settles_after_awaiting_interrupts_only_that(shell: Any, lab: Lab) -> None:
    shell.user_ns["pinging"] = lab.popen("client", ["ping", "-i", "0.05", "10.0.2.2"])
    ended = []

    async def interrupted() -> None:
        code = f"%%bpfpath icmp {here(lab)} -o cap --settle 30\nimport asyncio\nawait asyncio.sleep(0)\nran = True"
        cell = asyncio.ensure_future(shell.run_cell_async(code, transformed_cell=shell.transform_cell(code)))
        while "ran" not in shell.user_ns:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        cell.cancel()
        ended.append(await cell)

    began = time.monotonic()
    try:
        asyncio.run(interrupted())
    finally:
        shell.user_ns["pinging"].kill()
    assert ended[0].success
    assert shell.user_ns["cap"].status.state == "stopped"
    assert time.monotonic() - began < 20


def test_a_line_captures_for_a_time(shell: Any, lab: Lab) -> None:
    ask = when(running, lambda: eval(ASK, {"lab": lab}))
    assert run(shell, f"cap = %bpfpath udp port 53 {here(lab)} -t 30 -c 2 --match tc") is None
    ask.join()
    cap = shell.user_ns["cap"]
    assert (cap.status.state, cap.status.reason) == ("stopped", "packets")
    assert cap.start.options["match"] == "tc"
    assert len(cap.packets) == 2


def test_list_and_stop(shell: Any, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shell, f"%bpfpath udp port 53 {here(lab)} -o cap") is None
    run(shell, "rows = %bpfpath list")
    rows = shell.user_ns["rows"]
    assert rows[["name", "filter", "state"]].to_numpy().tolist() == [["cap", "udp port 53", "capturing"]]
    capsys.readouterr()

    run(shell, "%bpfpath stop")

    assert capsys.readouterr().out.startswith("cap (udp port 53): stopped: 0 packets")
    assert shell.user_ns["cap"].status.state == "stopped"
    assert running() == []


def test_what_the_tracer_refuses_is_one_message(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    error = run(shell, "%%bpfpath udp -n no-such-place -o cap\nran = True")
    shown = capsys.readouterr().out
    assert isinstance(error, NamespaceError)
    assert shown.startswith("NamespaceError: ")
    assert "Traceback" not in shown
    assert {"ran", "cap"} & set(shell.user_ns) == set()
