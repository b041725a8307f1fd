"""The file that somebody named: its path, or one error that tells what a path is."""

from __future__ import annotations

import os
from pathlib import Path

from bpfpath_nb.errors import OptionError
from bpfpath_nb.printable import printable


def file_path(path: str | os.PathLike[str]) -> Path:
    """The path, with `~` as the home folder.

    Raises
    ------
    OptionError
        It is neither text nor a path, or no file can have that name.
    """
    try:
        found = Path(path).expanduser()
        if b"\0" in os.fsencode(found):
            raise ValueError("it has a NUL character")
    except TypeError:
        raise OptionError(
            f"A file is named by a text or a Path, such as 'dns.parquet', not by {type(path).__name__}."
        ) from None
    except (ValueError, RuntimeError) as error:  # a name that cannot be encoded, or a user without a home
        raise OptionError(f"No file can be called {printable(repr(path), 80)}: {printable(str(error), 80)}.") from None
    return found
