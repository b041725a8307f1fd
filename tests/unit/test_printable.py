"""What others wrote is safe to print."""

from __future__ import annotations

from bpfpath_nb.errors import BpfpathError, HostError
from bpfpath_nb.printable import printable_lines


def test_a_message_keeps_its_lines_and_nothing_else_that_moves_the_cursor() -> None:
    assert printable_lines("one\r\ntwo\tx\x1b[2J\rthree") == "one\ntwo     x\\x1b[2J\\rthree"
    assert len(printable_lines("x\n" * 10_000)) == 4000


def test_an_error_of_another_host_cannot_draw_on_the_terminal() -> None:
    error = BpfpathError.from_record({"type": "HostError", "message": "no\x1b]0;title\x07 such\nhost"})
    assert isinstance(error, HostError)
    assert str(error) == "no\\x1b]0;title\\x07 such\nhost"
