"""What a helper's run needs of the channel to it, whichever that is."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from xen_save_helper.ipc_schema.channel.messages import Message


class HelperProcessArguments(NamedTuple):
    """What the channel adds to the helper's command line and environment, and the descriptors that
    it inherits; `stdin` and `stdout` are those of libxl's pipes, None for neither."""

    arguments: tuple[str, ...]
    pass_fds: tuple[int, ...]
    stdin: int | None = None
    stdout: int | None = None


class ChannelListener(Protocol):
    """Who hears what the channel brings. Called from the event loop."""

    def hello(self) -> None:
        """The helper is there and has shown who it is."""

    def message(self, message: Message, fields: dict[str, Any]) -> None:
        """A message, in turn."""

    def violation(self, reason: str) -> None:
        """A message that is none, or out of turn."""

    def lost(self, reason: str) -> None:
        """No more will come."""

    def stranger(self, reason: str) -> None:
        """Somebody else tried to join, and was refused."""


class HelperChannel(Protocol):
    """The controller's end. Made before the process, closed after it."""

    @property
    def process_arguments(self) -> HelperProcessArguments: ...

    def listen(self) -> None:
        """The process runs: take its messages."""

    def start(self, fields: dict[str, Any]) -> None:
        """Say what to do, after `hello`. Raises OSError."""

    def answer(self, message: Message, value: int) -> None:
        """Answer the callback that waits. Raises OSError."""

    def abort(self, rc: int, reason: str) -> None:
        """Say why SIGTERM comes, where that can be said. Raises OSError."""

    async def heard_out(self, limit: float) -> None:
        """After the process's end: until all that it said was taken in, or `limit` seconds."""

    def stop_listening(self) -> None: ...

    def close(self) -> None: ...
