"""What a helper's run needs of its channel, whichever that is."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from xen_save_helper.ipc_schema.channel.messages import Message


class HelperProcessArguments(NamedTuple):
    """The channel's part of the helper's command line, and the descriptors that the helper inherits
    for it; `stdin` and `stdout` are libxl's pipes, None for none."""

    arguments: tuple[str, ...]
    pass_fds: tuple[int, ...]
    stdin: int | None = None
    stdout: int | None = None


class ChannelListener(Protocol):
    """The receiver of what the channel brings. Called from the event loop."""

    def hello(self) -> None:
        """The helper has connected and proved who it is."""

    def message(self, message: Message, fields: dict[str, Any]) -> None:
        """A message came, in turn."""

    def violation(self, reason: str) -> None:
        """A malformed message came, or one out of turn."""

    def lost(self, reason: str) -> None:
        """The channel is broken: no more will come."""

    def stranger(self, reason: str) -> None:
        """Another process tried to join, and was refused."""


class HelperChannel(Protocol):
    """The controller's end. Made before the process, closed after it."""

    @property
    def process_arguments(self) -> HelperProcessArguments: ...

    def listen(self) -> None:
        """Take messages: the process runs."""

    def start(self, fields: dict[str, Any]) -> None:
        """Say what to do, after `hello`. Raises OSError."""

    def answer(self, message: Message, value: int) -> None:
        """Answer the outstanding callback. Raises OSError."""

    def abort(self, rc: int, reason: str) -> None:
        """Say why SIGTERM comes, if the channel can. Raises OSError."""

    async def drain(self, limit: float) -> None:
        """After the process's end, take in all that it sent, for at most `limit` seconds."""

    def stop_listening(self) -> None: ...

    def close(self) -> None: ...
