"""Put relays in the place of a job's streams."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.faults.injector import Injector
from xen_save_helper.helper.faults.session import Session, Streams
from xen_save_helper.helper.faults.stream_relay import CALLBACKS, Ends, FaultyRelay
from xen_save_helper.helper.job import Job
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.points import BACK_RECORDS, FIRST_BYTE, Moment, record_point
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType

_LEAD = 4096
"""Bytes that an engine may be ahead of what has passed, the least that the system allows."""


class Relays(Streams):
    """The relays of one job."""

    def __init__(self, relays: list[FaultyRelay], limit: float) -> None:
        self._relays = relays
        self._limit = limit

    def settle(self) -> None:
        for relay in self._relays:
            if relay.writing:
                relay.settle(self._limit)

    def calling(self, callback: str) -> None:
        if callback in CALLBACKS.values():
            self.settle()

    def answered(self, callback: str) -> None:
        if callback in CALLBACKS.values():
            for relay in self._relays:
                relay.turn.set()


@contextmanager
def relayed(session: Session, job: Job, abort: Abort) -> Iterator[None]:
    """Let the job's streams pass relays if the plan has faults for them. Raises OSError at the end
    if the engine's last bytes did not pass."""
    request = job.request
    saving = request.operation is Operation.SAVE
    main = _has(session.injector, back=False)
    back = _has(session.injector, back=True) and request.back_fd >= 0
    if request.back_fd == request.io_fd:
        main = back = main or back
    if not main and not back:
        yield
        return
    wanted = [("stream", request.io_fd, saving)] * main + [
        ("back", request.back_fd, not saving)
    ] * back
    ends = _interpose([fd for _name, fd, _writing in wanted])
    relays = [
        FaultyRelay(name, one, abort, session, writing=writing)
        for (name, _fd, writing), one in zip(wanted, ends, strict=True)
    ]
    for relay in relays:
        # A back channel without postcopy is the toolstack's.
        if relay.point == "stream" or request.postcopy:
            relay.turn.set()
    session.streams = streams = Relays(relays, job.stall_limit)
    for relay in relays:
        relay.start()
    try:
        yield
        streams.settle()
    finally:
        session.streams = Streams()


def _has(injector: Injector, *, back: bool) -> bool:
    kinds = [kind for kind in RecordType if (kind in BACK_RECORDS) == back]
    points = [
        record_point("libxc", kind.name, moment)
        for kind in kinds
        for moment in (Moment.WRITE, Moment.READ)
    ]
    return injector.has([*points, *(("back",) if back else ("stream", "page", FIRST_BYTE))])


def _interpose(fds: list[int]) -> list[Ends]:
    """The ends for each of `fds`. If both are the same, one socket pair serves both directions."""
    made: dict[int, Ends] = {}
    for fd in fds:
        if fd in made:
            _engine, ours, real = made[fd]
            return [made[fd], Ends(fd, ours.dup(), os.dup(real))]
        real = os.dup(fd)
        engine, ours = socket.socketpair()
        for end in (engine, ours):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LEAD)
        os.dup2(engine.fileno(), fd, inheritable=False)
        engine.close()
        made[fd] = Ends(fd, ours, real)
    return list(made.values())
