"""libxl's error codes, and the one error that every decoder raises."""

from __future__ import annotations

from enum import IntEnum


class Error(IntEnum):
    """`libxl_error`: the `rc` of a toolstack operation. libxl has no name for its 0, success."""

    OK = 0
    NONSPECIFIC = -1
    VERSION = -2
    FAIL = -3
    NI = -4
    NOMEM = -5
    INVAL = -6
    BADFAIL = -7
    GUEST_TIMEDOUT = -8
    TIMEDOUT = -9
    NOPARAVIRT = -10
    NOT_READY = -11
    OSEVENT_REG_FAIL = -12
    BUFFERFULL = -13
    UNKNOWN_CHILD = -14
    LOCK_FAIL = -15
    DOMAIN_NOTFOUND = -21
    ABORTED = -22
    NOTFOUND = -23
    DOMAIN_DESTROYED = -24


def rc_name(rc: int) -> str:
    """`ERROR_FAIL (-3)` for -3; the bare number for 0 and for codes that libxl does not have."""
    if not rc:
        return "0"
    try:
        return f"ERROR_{Error(rc).name} ({rc})"
    except ValueError:
        return str(rc)


class DecodeError(ValueError):
    """Bytes that violate their format.

    `what` names the format and the field, `offset` is in bytes from the start of the stream or
    message, `problem` says what was found and what would have been right.
    """

    def __init__(self, what: str, offset: int, problem: str) -> None:
        super().__init__(f"{what} at offset {offset:#x}: {problem}")
        self.what = what
        self.offset = offset
        self.problem = problem


class StreamEndError(DecodeError):
    """The stream ends too early: its writer is gone, or it was cut."""
