from __future__ import annotations

import errno

import pytest

from xen_save_helper.ipc_schema.causes import Cause, Why, why
from xen_save_helper.ipc_schema.errors import DecodeError, StreamEndError


@pytest.mark.parametrize(
    ("error", "cause", "errnoval"),
    [
        (BrokenPipeError(errno.EPIPE, "stream"), Cause.PEER, errno.EPIPE),
        (ConnectionResetError(errno.ECONNRESET, "stream"), Cause.PEER, errno.ECONNRESET),
        (EOFError("the stream ends"), Cause.PEER, errno.ENODATA),
        (StreamEndError("END", 8, "the stream ends"), Cause.PEER, errno.ENODATA),
        (DecodeError("END", 8, "a body of 3 bytes"), Cause.INVALID, errno.EINVAL),
        (TimeoutError("nothing came"), Cause.SILENCE, errno.ETIMEDOUT),
        (OSError(errno.ECANCELED, "SIGTERM received"), Cause.ABORTED, errno.ECANCELED),
        (OSError(errno.EPROTO, "out of turn"), Cause.PROTOCOL, errno.EPROTO),
        (OSError(errno.ENOSPC, "stream"), Cause.SYSTEM, errno.ENOSPC),
        (OSError("the device model refuses"), Cause.SYSTEM, errno.EIO),
        (MemoryError(), Cause.SYSTEM, errno.ENOMEM),
    ],
)
def test_why_of_an_exception(error: Exception, cause: Cause, errnoval: int) -> None:
    assert why(error) == Why(cause, errnoval)
