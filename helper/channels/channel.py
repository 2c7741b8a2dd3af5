"""The helper's channel to its controller, whatever carries it."""

from __future__ import annotations

from xen_save_helper.ipc_schema.channel.messages import NO_ERRNO, XentoollogLevel
from xen_save_helper.ipc_schema.hints import Final, Protocol

CONTEXT: Final = "xen-save-helper"
"""The context of log lines that are not libxc's."""

_LONGEST_TEXT = 8192


class ChannelError(OSError):
    """The conversation with the controller is over: it died, or broke the protocol.

    Every later call raises it too, so that an error path which still has callbacks to make does the
    rest of its work.
    """


class Channel(Protocol):
    """The helper's end of the callbacks; fields are the catalogue's, as keywords.

    One callback is outstanding at a time, so a channel belongs to one thread. Its methods raise
    ValueError for a message or field that is not in the catalogue: that is the caller's bug.
    """

    def provides(self, name: str) -> bool:
        """Whether the controller has the callback `name` (its bit in `cbflags`)."""

    def call(self, name: str, **fields: int | str) -> int:
        """Send a sync or async callback and wait for its answer. Raises ChannelError.

        An abort does not end the wait: the controller answers with the message's `refusal`.
        """

    def wait_for_ever(self) -> None:
        """Drop the limit for answers from here on, because giving up would lose the guest: only the
        controller's death ends a wait."""

    def tell(self, name: str, **fields: int | str) -> None:
        """Send a message that has no answer. Raises ChannelError."""

    def leave(self) -> None:
        """The controller has all that it needs: what is said from here on goes to nobody, and what
        is asked is answered by 0. Closes the connection."""


def log_fields(level: XentoollogLevel, text: str, errnoval: int = 0) -> dict[str, int | str]:
    """The fields of a log line of the helper's own; an `errnoval` of 0 means none."""
    return {
        "level": int(level),
        "errnoval": errnoval or NO_ERRNO,
        "context": CONTEXT,
        "formatted": text,
    }


def printable(fields: dict[str, int | str]) -> dict[str, int | str]:
    """The fields with texts that any channel can carry: a log line may quote names that are not
    UTF-8 or contain a NUL, and must not be lost for that. Long texts are cut."""
    return {
        name: _printable(value) if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _printable(text: str) -> str:
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]} ..."
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
