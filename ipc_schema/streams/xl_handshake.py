"""What `xl migrate` and `xl migrate-receive` say to each other around the stream (xl_migrate.c).

`toolstack.rules.handshake` has the order. Fault points are derived from `MESSAGES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from construct import Int8ub, Int16ul, Struct

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.errors import DecodeError, Error
from xen_save_helper.ipc_schema.streams import xl_header
from xen_save_helper.ipc_schema.streams.records import check_size


class HandshakeMessage(NamedTuple):
    """`sender` is the side that sends it, named by its helper's operation. `data` is the whole
    message or its fixed beginning; `what` names it for people."""

    name: str
    sender: Operation
    data: bytes
    what: str


# fmt: off
BANNER: Final = HandshakeMessage(
    "banner", Operation.RESTORE, b"xl migration receiver ready, send binary domain data.\n",
    "the receiver's banner")
"""The receiver's first message, the only fixed one without a trailing NUL."""
CONFIG: Final = HandshakeMessage(
    "config", Operation.SAVE, xl_header.MAGIC, "the configuration")
"""The xl header with the guest's configuration in it; the stream follows."""
VERDICT: Final = HandshakeMessage(
    "verdict", Operation.RESTORE, b"xl migration receiver's verdict\0", "the receiver's verdict")
"""Not xl's: whether the guest can come, if the header asks for it (`xl_header.OPTIONAL_VERDICT`).
Followed by what `encode_verdict` adds. No stream is sent before it."""
RECEIVING: Final = HandshakeMessage(
    "receiving", Operation.RESTORE, b"xl migration receiver is receiving\0",
    "word that it receives")
"""Not xl's: the helper there has what it needs from the stream's beginning, if the header asks for
it (`xl_header.OPTIONAL_RECEIVING`). The guest is not asked to suspend before it."""
READY: Final = HandshakeMessage(
    "ready", Operation.RESTORE, b"domain received, ready to unpause\0", "the ready message")
GO: Final = HandshakeMessage(
    "go", Operation.SAVE, b"domain is yours, you are cleared to unpause\0", "GO")
"""As soon as the source tries to send it, the destination may run the guest."""
REPORT: Final = HandshakeMessage(
    "report", Operation.RESTORE, b"my copy unpause results are as follows\0",
    "the destination's report")
"""Followed by one byte: 0 if the guest runs here, else -rc (0xff for a failure without an rc)."""
PERMISSION: Final = HandshakeMessage(
    "permission", Operation.RESTORE, GO.data, "permission to have the guest back")
"""After a report of a failed start."""
SYNC: Final = HandshakeMessage(
    "sync", Operation.RESTORE, b"postcopy migration completed successfully\0",
    "the end of postcopy")
"""The only message after a stream with a postcopy transition."""
# fmt: on

MESSAGES: Final[Mapping[str, HandshakeMessage]] = {
    message.name: message
    for message in (BANNER, CONFIG, VERDICT, RECEIVING, READY, GO, REPORT, PERMISSION, SYNC)
}
"""Every message by name, in order."""

MAX_REASON: Final = 1024
"""Bytes in a verdict's reason, at most."""

_VERDICT: Final = Struct("code" / Int8ub, "length" / Int16ul)
VERDICT_SIZE: Final[int] = _VERDICT.sizeof()
"""Bytes between the fixed ones of a verdict and its reason."""

_ACCEPTED: Final = 0
_NO_RC: Final = 0xFF


class Verdict(NamedTuple):
    """`rc` is libxl's, 0 if the guest can come; else `reason` says in one line why not."""

    rc: int
    reason: str


def encode_verdict(verdict: Verdict) -> bytes:
    """Encode the whole message. The code is as in a report: 0, -rc, or 0xff if -rc does not fit a
    byte. A reason longer than MAX_REASON bytes is cut."""
    code, reason = _ACCEPTED, b""
    if verdict.rc:
        code = -verdict.rc if 0 < -verdict.rc < _NO_RC else _NO_RC
        reason = verdict.reason.encode(errors="replace")[:MAX_REASON]
        reason = reason.decode(errors="ignore").encode()
    head = bytes(_VERDICT.build({"code": code, "length": len(reason)}))
    return VERDICT.data + head + reason


def decode_verdict_head(data: bytes) -> tuple[int, int]:
    """(rc, length of the reason in bytes) from the VERDICT_SIZE bytes after the fixed beginning.

    Raises DecodeError for a reason that is too long, missing, or given without a refusal.
    """
    check_size(data, VERDICT_SIZE, VERDICT.what, len(VERDICT.data))
    head = _VERDICT.parse(data)
    least, most = (0, 0) if head.code == _ACCEPTED else (1, MAX_REASON)
    if not least <= head.length <= most:
        raise DecodeError(
            VERDICT.what,
            len(VERDICT.data) + 1,
            f"code {head.code} with a reason of {head.length} bytes, want {least} to {most}",
        )
    return (int(Error.FAIL) if head.code == _NO_RC else -head.code), head.length


def decode_reason(data: bytes) -> str:
    """The reason in one line of printable text, whatever a peer sent. Raises DecodeError for bytes
    that are not UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        offset = len(VERDICT.data) + VERDICT_SIZE
        raise DecodeError(VERDICT.what, offset, f"the reason is not UTF-8: {error}") from error
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
