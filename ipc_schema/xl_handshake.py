"""What `xl migrate` and `xl migrate-receive` say to each other around the stream (xl_migrate.c).

When each is said, `toolstack.handshake` tells. What stands in `MESSAGES` has its fault points by
itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ipc_schema import xl_header
from ipc_schema.messages import Operation


class HandshakeMessage(NamedTuple):
    """`sender` is the side that says it, by what its helper does. `octets` is all of it, or what it
    begins with; `what` names it for people."""

    name: str
    sender: Operation
    octets: bytes
    what: str


# fmt: off
BANNER: Final = HandshakeMessage(
    "banner", Operation.RESTORE, b"xl migration receiver ready, send binary domain data.\n",
    "the receiver's banner")
"""The receiver's first message. The only fixed one that goes without its trailing NUL."""
CONFIG: Final = HandshakeMessage(
    "config", Operation.SAVE, xl_header.MAGIC, "the configuration")
"""The xl header with the guest's configuration in it; the stream follows."""
READY: Final = HandshakeMessage(
    "ready", Operation.RESTORE, b"domain received, ready to unpause\0", "the ready message")
GO: Final = HandshakeMessage(
    "go", Operation.SAVE, b"domain is yours, you are cleared to unpause\0", "GO")
"""From the attempt to say it on, the destination may run the guest."""
REPORT: Final = HandshakeMessage(
    "report", Operation.RESTORE, b"my copy unpause results are as follows\0",
    "the destination's report")
"""Followed by one octet: 0 the guest runs here, else -rc (0xff for a failure without an rc)."""
PERMISSION: Final = HandshakeMessage(
    "permission", Operation.RESTORE, GO.octets, "permission to have the guest back")
"""After a report of a failed start."""
SYNC: Final = HandshakeMessage(
    "sync", Operation.RESTORE, b"postcopy migration completed successfully\0",
    "the end of postcopy")
"""The only message behind a stream with a postcopy transition."""
# fmt: on

MESSAGES: Final[Mapping[str, HandshakeMessage]] = {
    message.name: message for message in (BANNER, CONFIG, READY, GO, REPORT, PERMISSION, SYNC)
}
"""Every message by name, in the order in which they come."""
