"""What `%load_ext bpfpath_nb` does to a notebook: names, and the magic `%bpfpath`.

It gives the notebook the names that one needs to begin. A name that the user has already is left alone, and said: a
notebook whose `Capture` became another one in silence would be hard to understand. `%unload_ext` takes away only what
is still ours. Durations in frames are shown in microseconds (`frame_display`).

`%%bpfpath FILTER -o cap` captures what its cell does. The capture is armed and bound to its name before the first line
runs; when the last one is done, it goes on until the packets that were seen have come to their ends, at most for
`--settle` seconds. Whatever ends the cell, an exception or the stop button too, the capture is stopped and shown, and
then the exception goes its way: the cell fails as it would have without the magic, with a traceback of its own lines
alone.

A cell that awaits something at its top level cannot be run by a function that returns when it is done: the notebook's
own event loop has to run it. So before IPython decides how to run such a cell, an `await` is put in front of the
magic's call, which gives a coroutine then.

IPython would replace `{name}` and `$name` in a magic's line; here nothing is replaced, since both can stand in a
pattern. To put a value into a filter, write `Capture(f"host {address}")`.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import functools
import inspect
import keyword
import shlex
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pandas as pd
from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.display import display

import bpfpath_nb
from bpfpath_nb import frame_display
from bpfpath_nb.errors import BpfpathError, OptionError
from bpfpath_nb.options import add_capture_options, capture_arguments

if TYPE_CHECKING:
    from types import CodeType

    from bpfpath_nb.capture import Capture

NAMES: Final = ("Capture", "Recording", "compare", "compare_widget", "doctor", "live")

SETTLE: Final = 3.0
"""How long the packets of a cell may take to come to their ends after it, in seconds."""

_QUIET = 0.3
"""Without a new event for so long, in seconds, what was seen is looked at; the tracer sends some times a second."""

_given: dict[int, dict[str, Any]] = {}
"""What each shell was given, by the shell's id; a process may have several."""


def load(shell: Any) -> None:
    """Give the shell the names that it does not have, and the magic."""
    given, kept = {}, []
    for name in NAMES:
        value = getattr(bpfpath_nb, name)
        if name not in shell.user_ns:
            given[name] = value
        elif shell.user_ns[name] is not value:
            kept.append(name)
    # Not interactive: `%who` lists what the user made, and `%reset` is to leave these.
    shell.push(given, interactive=False)
    _given[id(shell)] = _given.get(id(shell), {}) | given
    shell.register_magics(BpfpathMagics)
    frame_display.register(shell)
    _forget_awaiting(shell)
    shell.input_transformers_post.append(functools.partial(_awaiting, shell))
    if kept:
        print(
            f"bpfpath_nb: you have a {' and a '.join(kept)} already, which was left alone; "
            f"use {', '.join(f'bpfpath_nb.{name}' for name in kept)} for ours."
        )


def unload(shell: Any) -> None:
    """Take back what `load` gave, if it is still that."""
    for name, value in _given.pop(id(shell), {}).items():
        if shell.user_ns.get(name) is value:
            del shell.user_ns[name]
            shell.user_ns_hidden.pop(name, None)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("bpfpath", None)
    frame_display.unregister(shell)
    _forget_awaiting(shell)


def _forget_awaiting(shell: Any) -> None:
    transformers = shell.input_transformers_post
    transformers[:] = [each for each in transformers if getattr(each, "func", None) is not _awaiting]


def _awaiting(shell: Any, lines: list[str]) -> list[str]:
    """Put an `await` in front of the magic's call where its cell awaits something at its top level."""
    code = "".join(lines)
    if not code.startswith("get_ipython().run_cell_magic('bpfpath',"):
        return lines
    with contextlib.suppress(SyntaxError, ValueError, AttributeError, IndexError):
        call: Any = ast.parse(code, mode="eval").body
        cell = compile(shell.transform_cell(call.args[2].value), "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if cell.co_flags & inspect.CO_COROUTINE:
            return [f"await {code}"]
    return lines


class _Help(Exception):  # noqa: N818 - a way out of the parser, not an error
    """Help was asked for."""


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"%bpfpath: {message}. `%bpfpath?` shows the options.")

    def print_help(self, file: Any = None) -> None:
        raise _Help


_USAGE = """%%bpfpath FILTER [options]     capture what the cell does
       %bpfpath FILTER -t 5           capture for 5 seconds; without -t or -c until `%bpfpath stop`
       %bpfpath list | stop | doctor  what is running; end it; what works on this machine"""


def _parser() -> _Parser:
    parser = _Parser(
        prog="%bpfpath",
        usage=_USAGE.replace("%", "%%"),
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100),
    )
    add_capture_options(parser)
    parser.add_argument("-o", "--output", metavar="NAME", help="variable for the capture")
    parser.add_argument(
        "--settle", type=float, default=SETTLE, metavar="SECONDS",
        help=f"how long the packets may take to come to their ends after the cell (default: {SETTLE:g})",
    )  # fmt: skip
    return parser


@magics_class
class BpfpathMagics(Magics):
    """The magic `%bpfpath`, for a line or a cell."""

    shell: Any  # an InteractiveShell, where IPython's own stubs say that there may be none

    @no_var_expand
    @line_cell_magic
    def bpfpath(self, line: str, cell: str | None = None) -> Any:
        """Capture packets and show their ways through the kernel."""
        with _without_traceback():
            words = _words(line)
            if len(words) == 1 and words[0] in ("list", "stop", "doctor"):
                if cell is not None:
                    raise OptionError(f"`%bpfpath {words[0]}` takes no cell: write it with one % on a line of its own.")
                return getattr(self, f"_{words[0]}")()
            try:
                options = _parser().parse_intermixed_args(words)
            except _Help:
                print(_parser().format_help())
                return None
            name = options.output
            if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
                raise OptionError(f"-o wants the name of a variable, not {name[:200]!r}.")
            if cell is None:
                return self._line(options)
        return self._cell(options, cell)

    def _line(self, options: argparse.Namespace) -> Capture:
        capture = self._capture(options)
        if options.duration is not None or options.packets is not None:
            capture.wait()
            capture.stop()
        return capture

    def _cell(self, options: argparse.Namespace, cell: str) -> Any:
        # A cell that cannot run at all is refused before anything is attached.
        parts = self._compile(cell)
        if any(part.co_flags & inspect.CO_COROUTINE for part in parts):
            return self._awaited(options, parts)
        with self._captured(options) as capture:
            for part in parts:
                eval(part, self.shell.user_global_ns, self.shell.user_ns)
            with _settling():
                for pause in _unsettled(capture, options.settle):
                    capture.wait(seconds=pause)
        return None

    async def _awaited(self, options: argparse.Namespace, parts: list[CodeType]) -> None:
        with self._captured(options) as capture:
            for part in parts:
                found = eval(part, self.shell.user_global_ns, self.shell.user_ns)
                if inspect.isawaitable(found):
                    await found
            with _settling():
                try:
                    for pause in _unsettled(capture, options.settle):
                        await asyncio.sleep(pause)  # what runs in this loop may be what the packets are for
                except asyncio.CancelledError:  # so a kernel interrupts what awaits
                    if (task := asyncio.current_task()) is not None:
                        task.uncancel()

    @contextlib.contextmanager
    def _captured(self, options: argparse.Namespace) -> Iterator[Capture]:
        with _without_traceback():
            if not 0 <= options.settle <= 3600:
                raise OptionError(f"--settle wants seconds, from 0 to 3600; not {options.settle:g}.")
            capture = self._capture(options)
        try:
            yield capture
        except BaseException as error:
            _keep_own_lines(self.shell, error)
            raise
        finally:
            try:
                capture.stop()
            except KeyboardInterrupt:  # of an impatient one; the first stop goes on
                capture.stop()
            display(capture)  # type: ignore[no-untyped-call]

    def _capture(self, options: argparse.Namespace) -> Capture:
        capture = bpfpath_nb.Capture(**capture_arguments(options))
        if options.output is not None:
            self.shell.push({options.output: capture})
        return capture

    def _compile(self, cell: str) -> list[CodeType]:
        """The cell as code; the value of a last expression is shown, as in any cell."""
        shell = self.shell
        # The line of the magic counts too, so that a traceback has the numbers that the notebook shows.
        source = "\n" + shell.transform_cell(cell)
        file = shell.compile.cache(source, shell.execution_count, raw_code=source)
        statements = shell.transform_ast(shell.compile.ast_parse(source, filename=file)).body
        shown = statements[-1:] if statements and isinstance(statements[-1], ast.Expr) else []
        silent = statements[: len(statements) - len(shown)]
        with shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
            parts = [shell.compile(ast.Module(silent, []), file, "exec")]
            return parts + ([shell.compile(ast.Interactive(shown), file, "single")] if shown else [])

    def _list(self) -> pd.DataFrame:
        """The captures of this process that are running, as a frame."""
        from bpfpath_nb.capture import running

        rows = [(self._name(capture), capture.start.filter, *_figures(capture)) for capture in running()]
        return pd.DataFrame(rows, columns=["name", "filter", "state", "seconds", "packets", "hops", "lost"])

    def _stop(self) -> None:
        from bpfpath_nb.capture import running

        captures = running()
        for capture in captures:
            capture.stop()
            print(f"{self._name(capture) or 'a capture'} ({capture.start.filter or 'every packet'}): {capture.status}")
        if not captures:
            print("no capture is running")

    def _doctor(self) -> Any:
        return bpfpath_nb.doctor()

    def _name(self, capture: Capture) -> str:
        """What the notebook calls a capture; empty where it has no name."""
        names = (name for name, value in self.shell.user_ns.items() if value is capture and name[:1] != "_")
        return next(names, "")


BpfpathMagics.bpfpath.__doc__ = f"{BpfpathMagics.bpfpath.__doc__}\n\n{_parser().format_help()}"


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise OptionError(f"%bpfpath: {error} in {line[:200]!r}.") from None


def _figures(capture: Capture) -> tuple[object, ...]:
    status = capture.status
    return status.state, round(status.seconds, 1), status.packets, status.events, status.lost


@contextlib.contextmanager
def _settling() -> Iterator[None]:
    """What is interrupted here is only the waiting."""
    with contextlib.suppress(KeyboardInterrupt), _without_traceback():
        yield


def _unsettled(capture: Capture, limit: float) -> Iterator[float]:
    """How long to wait, again and again, until all packets that were seen have come to their ends.

    Raises
    ------
    TracerError
        The tracer died.
    """
    until = time.monotonic() + limit
    seen, since = -1, time.monotonic()
    while (now := time.monotonic()) < until and capture.status.state == "capturing":
        events = capture.status.events
        if events != seen:
            seen, since = events, now
        elif now - since >= _QUIET:
            if not (capture.packets["verdict"] == "unfinished").any():
                return
            since = now
        yield min(0.1, until - now)
    capture.wait(seconds=0)


@contextlib.contextmanager
def _without_traceback() -> Iterator[None]:
    """Show an error of ours as its one paragraph. It keeps its type, and the cell fails as with any other."""
    try:
        yield
    except BpfpathError as error:
        shown = f"{type(error).__name__}: {error}"
        error._render_traceback_ = lambda: [shown]  # type: ignore[attr-defined]
        raise
    except KeyboardInterrupt as interrupt:
        interrupt._render_traceback_ = lambda: ["KeyboardInterrupt"]  # type: ignore[attr-defined]
        raise


def _keep_own_lines(shell: Any, error: BaseException) -> None:
    """Have an error of the cell shown with the lines of the cell, without those of the magic that ran it."""
    steps = error.__traceback__
    while steps is not None and steps.tb_frame.f_code.co_filename == __file__:
        steps = steps.tb_next
    if steps is None or isinstance(error, SyntaxError) or hasattr(error, "_render_traceback_"):
        return
    try:
        shown = shell.InteractiveTB.structured_traceback(type(error), error, steps, tb_offset=0)
    except Exception:  # a traceback that cannot be shown prettily (IPython's own care) is shown as Python does
        shown = traceback.format_exception(type(error), error, steps)
    with contextlib.suppress(AttributeError):  # an exception class with slots takes no attribute
        error._render_traceback_ = lambda: shown  # type: ignore[attr-defined]
