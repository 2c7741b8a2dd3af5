"""The places where faults can be injected into a helper. `helper.faults.seams` injects a plan's;
here nothing is injected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.job import Job
from xen_save_helper.ipc_schema.channel.messages import Dialect
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING
from xen_save_helper.ipc_schema.trace import Trace

if TYPE_CHECKING:
    from xen_save_helper.helper.channels.pipe_channel import PipeChannel
    from xen_save_helper.helper.channels.zmq_channel import ZmqChannel

    OpenZmq = Callable[[str, bytes, float], ZmqChannel]
    OpenPipe = Callable[[int, int, Dialect, int, Abort, float], PipeChannel]


class Seams:
    """What `main` and `run` do wherever a plan may have faults.

    A channel's class is imported on demand, since a process needs only one of the two.
    """

    def step(self, name: str) -> None:
        """Called when the process reaches `start`, `hello` or `exit`, and before each step of a
        page server or a pager (`ipc_schema.faults.points`)."""

    def begin(self, job: Job) -> None:
        """Called once the job is known."""

    def traced(self, trace: Trace) -> Trace:
        """The trace for the engine."""
        return trace

    def streams(self, job: Job, abort: Abort) -> AbstractContextManager[None]:
        """A context around the engine's work on the job's streams."""
        del job, abort
        return nullcontext()

    def zmq_channel(self) -> OpenZmq:
        from xen_save_helper.helper.channels.zmq_channel import ZmqChannel

        return ZmqChannel

    def pipe_channel(self) -> OpenPipe:
        from xen_save_helper.helper.channels.pipe_channel import PipeChannel

        return PipeChannel
