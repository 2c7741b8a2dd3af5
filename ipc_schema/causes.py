"""The cause of a failure, for programs: a small enum, which the trace has besides the text.

A cause follows from the errno, as libxc passes it on in `complete`, from the type of the exception,
or from the rule that found the failure.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from enum import StrEnum

from xen_save_helper.ipc_schema.errors import StreamEndError
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple


class Cause(StrEnum):
    SYSTEM = "system"
    """A call to the system or the host failed, or its state does not allow the operation."""
    PEER = "peer"
    """The other side of the stream or the link disconnected; no more is known here."""
    DESTINATION = "destination"
    """The receiver reports a failure, refuses the guest, or was killed. Its own trace has the
    cause."""
    SILENCE = "silence"
    """A limit passed in which nothing was said, taken or done."""
    INVALID = "invalid"
    """Bytes of a stream or an argument are not what they should be."""
    PROTOCOL = "protocol"
    """A message is unknown or malformed, or came out of turn."""
    CHANNEL = "channel"
    """The channel between the helper and its controller has broken."""
    HELPER = "helper"
    """The helper's process ended unexpectedly: `helper_exited` has its status."""
    GUEST = "guest"
    """The guest did not suspend, or has crashed."""
    ABORTED = "aborted"
    """An abort was requested: by a signal, a cancellation or an answer."""


_BY_ERRNO: Final[Mapping[int, Cause]] = {
    errno.EPIPE: Cause.PEER,
    errno.ECONNRESET: Cause.PEER,
    errno.ENODATA: Cause.PEER,
    errno.ETIMEDOUT: Cause.SILENCE,
    errno.EINVAL: Cause.INVALID,
    errno.EPROTO: Cause.PROTOCOL,
    errno.ECANCELED: Cause.ABORTED,
}
"""libxc says EPIPE for a write whose reader is gone, our own engine ENODATA for such a read."""


class Why(NamedTuple):
    """A cause, and its errno; 0 if none is known."""

    cause: Cause = Cause.SYSTEM
    errnoval: int = 0


SYSTEM: Final = Why()


def why_errno(errnoval: int) -> Why:
    return Why(_BY_ERRNO.get(errnoval, Cause.SYSTEM), errnoval)


def why(error: BaseException) -> Why:
    return why_errno(errno_of(error))


def errno_of(error: BaseException) -> int:
    """The errno that libxc would leave for the exception; EIO if it does not tell."""
    match error:
        case OSError(errno=int(number)) if number:
            return number
        case TimeoutError():
            return errno.ETIMEDOUT
        case EOFError() | StreamEndError():
            return errno.ENODATA
        case ValueError():
            return errno.EINVAL
        case MemoryError():
            return errno.ENOMEM
    return errno.EIO


def words_of(bad: BaseException) -> str:
    """The message without Python's `[Errno 32]`; the name of an exception that has none."""
    return (isinstance(bad, OSError) and bad.strerror) or str(bad) or type(bad).__name__
