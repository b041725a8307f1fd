"""Every error that bpfpath_nb raises on purpose.

One small hierarchy under `BpfpathError`. Each class also inherits the built-in exception a Python user would
expect (`ValueError`, `PermissionError`, ...), so that ordinary `except` clauses work. A message is one
paragraph: what happened, and what to do next.

Errors of the tracer process travel to the notebook as a plain record (`to_record`, `from_record`) and are raised
there again under their own type.
"""

from __future__ import annotations

from typing import ClassVar

from bpfpath_nb.printable import printable_lines


class BpfpathError(Exception):
    """Base of all errors of bpfpath_nb."""

    reported = False
    """Whether the tracer process reported it, in good order, and is ready for the next request."""

    _types: ClassVar[dict[str, type[BpfpathError]]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        BpfpathError._types[cls.__name__] = cls

    def to_record(self) -> dict[str, str]:
        """The error as plain data, for the way between two processes."""
        return {"type": type(self).__name__, "message": str(self)}

    @staticmethod
    def from_record(record: dict[str, str]) -> BpfpathError:
        """The error that `to_record` described; a `TracerError` where its type is unknown here.

        Another host wrote the message: nothing in it moves the cursor of the terminal that shows it.
        """
        message = printable_lines(record.get("message", "unknown error"))
        error = BpfpathError._types.get(record.get("type", ""), TracerError)(message)
        error.reported = True
        return error


class FilterError(BpfpathError, ValueError):
    """A packet filter that does not parse, or that cannot be translated for the kernel."""


class OptionError(BpfpathError, ValueError):
    """An argument or option whose value makes no sense."""


class FunctionError(BpfpathError, ValueError):
    """A kernel function, or a set of functions, that is not known; the message names the nearest ones."""


class NamespaceError(BpfpathError, LookupError):
    """A network namespace that does not exist."""


class InterfaceError(BpfpathError, LookupError):
    """A network interface that does not exist in the namespaces that are traced."""


class PrivilegeError(BpfpathError, PermissionError):
    """The tracer may not load BPF programs; the message shows the ways out."""


class RequirementError(BpfpathError, RuntimeError):
    """Something that the machine must have is missing: bcc, BTF, a kernel feature, a library."""


class HostError(BpfpathError, ConnectionError):
    """A remote host that cannot be reached, or that has no bpfpath_nb."""


class ArmTimeoutError(BpfpathError, TimeoutError):
    """The capture was not armed within its limit. Nothing is left attached."""


class TracerError(BpfpathError, RuntimeError):
    """The tracer process failed or died. What it had delivered is kept."""


class RecordingError(BpfpathError, ValueError):
    """A file that is not a recording, or a truncated or damaged one."""


class NotebookError(BpfpathError, ValueError):
    """A file that is not a notebook."""


class LabError(BpfpathError, RuntimeError):
    """The practice network could not be built or taken down."""
