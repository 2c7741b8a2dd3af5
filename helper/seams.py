"""Where faults get into a helper. Here none do; those of a plan are `helper.faults.seams`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.job import Job
from xen_save_helper.ipc_schema.channel.messages import Dialect
from xen_save_helper.ipc_schema.trace import Trace

if TYPE_CHECKING:
    from xen_save_helper.helper.channels.pipe_channel import PipeChannel
    from xen_save_helper.helper.channels.zmq_channel import ZmqChannel


class Seams:
    """What `main` and `run` do at each place where a plan may have faults.

    A channel is imported when it is opened: a process needs one of the two.
    """

    def milestone(self, name: str) -> None:
        """The process has come to `start`, `hello` or `exit`."""

    def begin(self, job: Job) -> None:
        """The job is known."""

    def traced(self, trace: Trace) -> Trace:
        """The trace that the engine gets."""
        return trace

    def streams(self, job: Job, abort: Abort) -> AbstractContextManager[None]:
        """Surrounds the engine's work on the job's streams."""
        del job, abort
        return nullcontext()

    def zmq_channel(self, endpoint: str, secret: bytes, answer_limit: float) -> ZmqChannel:
        from xen_save_helper.helper.channels.zmq_channel import ZmqChannel

        return ZmqChannel(endpoint, secret, answer_limit)

    def pipe_channel(
        self,
        answers: int,
        messages: int,
        dialect: Dialect,
        cbflags: int,
        abort: Abort,
        answer_limit: float,
    ) -> PipeChannel:
        from xen_save_helper.helper.channels.pipe_channel import PipeChannel

        return PipeChannel(answers, messages, dialect, cbflags, abort, answer_limit)
