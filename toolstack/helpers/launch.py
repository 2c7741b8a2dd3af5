"""How a helper, ours or libxl's, is started: channel, command line, environment, and request."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest, start_fields
from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    UNCONDITIONAL,
    Dialect,
    Operation,
    StreamType,
    callback_bit,
)
from xen_save_helper.toolstack.helpers.channel import ChannelListener, HelperChannel
from xen_save_helper.toolstack.helpers.request import HelperProgram, PipeHelper
from xen_save_helper.toolstack.limits import Limits

OpenZmq = Callable[[Operation, frozenset[str], ChannelListener], HelperChannel]


def open_zmq(
    operation: Operation, provided: frozenset[str], listener: ChannelListener
) -> HelperChannel:
    """The channel to our helper; `provided` is `HelperLaunch`'s. Raises OSError."""
    from xen_save_helper.toolstack.helpers.zmq_controller import ZmqController

    return ZmqController(operation, provided, listener)


@dataclass(frozen=True)
class HelperLaunch:
    """One start of a helper. `request` has the descriptors that the process inherits; `provided`
    has the names of the callbacks that the caller provides."""

    request: HelperRequest
    provided: frozenset[str]
    program: HelperProgram
    limits: Limits
    open_zmq: OpenZmq = open_zmq
    admission: float = 0.0
    """Seconds for which a save's receiver may leave the stream unread; 0 if it reads at once."""

    def channel(self, listener: ChannelListener) -> HelperChannel:
        """Open the channel. Raises OSError, with ENOTSUP for what the protocol cannot carry."""
        if isinstance(self.program, PipeHelper):
            dialect = self.program.dialect
            if self.request.bandwidth:
                raise OSError(errno.ENOTSUP, "libxl's helper protocol has no bandwidth limit")
            if self.request.postcopy and dialect is not Dialect.SERIES:
                raise OSError(errno.ENOTSUP, f"dialect {dialect.value} has no postcopy")
            from xen_save_helper.toolstack.helpers.pipe_controller import PipeController

            arguments = HelperArguments(self.request, dialect, _cbflags(self.provided, dialect))
            return PipeController(arguments, self.provided, listener)
        return self.open_zmq(self.request.operation, self.provided, listener)

    def command(self) -> tuple[str, ...]:
        """The program and its arguments, without the channel's."""
        if isinstance(self.program, PipeHelper):
            return (str(self.program.path),)
        command = self.program.command or (
            sys.executable,
            "-P",
            "-m",
            "xen_save_helper.helper.main",
        )
        return (
            *command,
            "--stream-stall", str(self._stall_limit),
            "--admission", str(self.admission),
            "--start-limit", str(self.limits.helper_start),
            "--answer-limit", str(self._patience),
            "--operation", self.request.operation.value,
            "--outlive", str(int(self._may_be_outlived)),
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """What libxl's command line has no argument for, for our helper in its place."""
        if not isinstance(self.program, PipeHelper):
            return {}
        return {
            "XEN_SAVE_HELPER_DIALECT": self.program.dialect.value,
            "XEN_SAVE_HELPER_HYPERVISOR": self.request.hypervisor,
            "XEN_SAVE_HELPER_ENGINE": self.request.engine.value,
            "XEN_SAVE_HELPER_STREAM_STALL": str(self._longest_stall),
            "XEN_SAVE_HELPER_ANSWER_LIMIT": str(self._patience),
            "XEN_SAVE_HELPER_MISSING_CPU_FEATURES": self.request.missing_cpu_features.value,
        }

    @property
    def _may_be_outlived(self) -> bool:
        return self.request.operation is Operation.RESTORE and bool(self.request.control)

    def start_fields(self) -> dict[str, Any]:
        """The fields of the catalogue's `start`."""
        return {**start_fields(self.request), "cbflags": _cbflags(self.provided, None)}

    @property
    def checkpointed(self) -> bool:
        """Whether the stream is Remus's or COLO's. Silence must not end it: libxc takes that for
        the other side's death, and the guest would run at both ends."""
        return self.request.stream_type is not StreamType.PLAIN

    @property
    def _stall_limit(self) -> float:
        """In seconds; 0 for no limit, as in the properties below."""
        if self.checkpointed:
            return 0.0
        saving = self.request.operation is Operation.SAVE
        return self.limits.stream_stall if saving else self.limits.sender_silence

    @property
    def _longest_stall(self) -> float:
        """The longer of two limits that libxl's protocol cannot tell apart."""
        return max(self._stall_limit, self.admission) if self._stall_limit else 0.0

    @property
    def _patience(self) -> float:
        """Seconds after which no answer of ours comes any more: we would have given up before. The
        helper uses it in case its message or our answer was lost."""
        if self.checkpointed:
            return 0.0
        return self.limits.callback + self.limits.abort

    @property
    def silence(self) -> float:
        """Seconds for which a helper at work may show no sign of life: longer than it may wait for
        others, and than its own watchdog takes to end it (a quarter more)."""
        if self.checkpointed:
            return 0.0
        return 1.25 * (self._longest_stall + self._patience) + self.limits.abort


def _cbflags(names: Iterable[str], dialect: Dialect | None) -> int:
    flags = 0
    for name in names:
        message = CATALOGUE[name]
        if name in UNCONDITIONAL:
            continue
        if message.on_pipe and (dialect is None or dialect in message.numbers):
            flags |= callback_bit(message, dialect)
    return flags
