"""What a save or restore may say to its controller, whichever channel carries it."""

from __future__ import annotations

from typing import Final, Protocol

from xen_save_helper.ipc_schema.channel.messages import NO_ERRNO, XentoollogLevel

CONTEXT: Final = "xen-save-helper"
"""Whose log lines they are, where they are not libxc's."""

_LONGEST_TEXT = 8192


class ChannelError(OSError):
    """The conversation with the controller is over: it died, or broke the protocol.

    Every later call raises it too, so an error path that still has callbacks to make gets through
    the rest of its work.
    """


class Channel(Protocol):
    """The helper's end of the callbacks; fields are those of the catalogue, by keyword.

    One callback is outstanding at a time, so a channel belongs to one thread. Raises ValueError
    for a message or field that the catalogue does not have: that is a fault of the caller.
    """

    def provides(self, name: str) -> bool:
        """Whether the controller has the callback `name` (its bit in `cbflags`)."""

    def call(self, name: str, **fields: int | str) -> int:
        """Send a sync or async callback and wait for its answer. Raises ChannelError.

        A call that waits when an abort is asked for goes on waiting: the controller answers it
        with the message's `refusal`.
        """

    def wait_for_ever(self) -> None:
        """From here on no answer has a limit: only the controller's death ends the wait for one.
        For what would be lost by giving up."""

    def tell(self, name: str, **fields: int | str) -> None:
        """Send a message that has no answer. Raises ChannelError."""


def log_fields(level: XentoollogLevel, text: str, errnoval: int = 0) -> dict[str, int | str]:
    """A log line of the helper's own; an `errnoval` of 0 is none."""
    return {
        "level": int(level),
        "errnoval": errnoval or NO_ERRNO,
        "context": CONTEXT,
        "formatted": text,
    }


def printable(fields: dict[str, int | str]) -> dict[str, int | str]:
    """The fields with texts that any channel can carry: a log line quotes what others named (a
    file that is no UTF-8, with a NUL), and must not be lost for it. Long texts are cut."""
    return {
        name: _printable(value) if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _printable(text: str) -> str:
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]} ..."
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
