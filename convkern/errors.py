"""What can go wrong outside the arrays: files that lie, extras that are missing, a Ctrl-C."""

from __future__ import annotations

import importlib
import os
import stat
import struct
from io import BufferedReader
from types import ModuleType


class FormatError(ValueError):
    """A file is not what it claims to be: damaged, truncated, or of another format.

    Examples
    --------
    >>> from convkern.errors import FormatError
    >>> issubclass(FormatError, ValueError)
    True
    """


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM, at a moment from which it can go on.

    Examples
    --------
    >>> from convkern.errors import Interrupted
    >>> issubclass(Interrupted, KeyboardInterrupt)
    True
    """


#: What parsers raise when bytes are damaged, and what then becomes a FormatError.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line of bearable length, or its type."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file for reading; a folder, pipe or device is a FormatError, not an endless read."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FormatError(f"{os.fspath(path)} is not a regular file")
    return open(path, "rb")


def import_extra(module: str, extra: str = "app") -> ModuleType:
    """Import a module of an extra; the ImportError of a missing one says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{error}; install it with: pip install "convkern[{extra}]"') from error
