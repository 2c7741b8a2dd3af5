"""Failures as people read them."""

from __future__ import annotations


def message_of(error: BaseException) -> str:
    """One line for people: `strerror: file` instead of Python's `[Errno 2] ...`."""
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{name}"
    return str(error) or type(error).__name__
