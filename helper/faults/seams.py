"""The faults of a plan at a helper's seams."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.faults.session import Session
from xen_save_helper.helper.job import Job
from xen_save_helper.helper.seams import Seams
from xen_save_helper.ipc_schema.channel.messages import Dialect
from xen_save_helper.ipc_schema.trace import Trace

if TYPE_CHECKING:
    from xen_save_helper.helper.faults.faulty_pipe import FaultyPipeChannel
    from xen_save_helper.helper.faults.faulty_zmq import FaultyZmqChannel


class FaultySeams(Seams):
    """`session` strikes at each of them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def milestone(self, name: str) -> None:
        self._session.milestone(name)

    def begin(self, job: Job) -> None:
        self._session.begin(job)

    def traced(self, trace: Trace) -> Trace:
        return self._session.traced(trace)

    def streams(self, job: Job, abort: Abort) -> AbstractContextManager[None]:
        from xen_save_helper.helper.faults.streams import relayed

        return relayed(self._session, job, abort)

    def zmq_channel(self, endpoint: str, secret: bytes, answer_limit: float) -> FaultyZmqChannel:
        from xen_save_helper.helper.faults.faulty_zmq import FaultyZmqChannel

        return FaultyZmqChannel(self._session, endpoint, secret, answer_limit)

    def pipe_channel(
        self,
        answers: int,
        messages: int,
        dialect: Dialect,
        cbflags: int,
        abort: Abort,
        answer_limit: float,
    ) -> FaultyPipeChannel:
        from xen_save_helper.helper.faults.faulty_pipe import FaultyPipeChannel

        return FaultyPipeChannel(
            self._session, answers, messages, dialect, cbflags, abort, answer_limit
        )
