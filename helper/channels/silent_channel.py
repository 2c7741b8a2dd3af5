"""A channel to nobody: for a process that goes on when its controller has ended."""

from __future__ import annotations

import errno

from xen_save_helper.helper.channels.channel import ChannelError


class SilentChannel:
    """`Channel` that provides nothing, and says nothing."""

    def provides(self, name: str) -> bool:
        del name
        return False

    def call(self, name: str, **fields: int | str) -> int:
        del fields
        raise ChannelError(errno.EPIPE, f"there is nobody to answer {name}")

    def wait_for_ever(self) -> None:
        pass

    def tell(self, name: str, **fields: int | str) -> None:
        pass

    def leave(self) -> None:
        pass
