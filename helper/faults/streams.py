"""Put relays in the place of a job's streams."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.faults.stream_relay import CALLBACKS, Ends, StreamRelay
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.helper.job import Job
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.points import BACK_RECORDS, Kind, Point

_LEAD = 4096
"""Bytes that an engine may be ahead of what has passed, the least that the system allows."""


class Streams:
    """The relays of the job's streams, which hear of each callback; without a job, and for most
    plans, there are none."""

    def __init__(self) -> None:
        self._relays: list[StreamRelay] = []
        self._limit = 0.0

    def calling(self, callback: str) -> None:
        """`callback` is about to be made: what the engine has written goes before what the handler
        writes. Raises OSError."""
        if callback in CALLBACKS.values():
            self._settle()

    def answered(self, callback: str) -> None:
        """The answer to `callback` is taken: the streams are the engine's again."""
        if callback in CALLBACKS.values():
            for relay in self._relays:
                relay.turn.set()

    @contextmanager
    def relayed(self, striker: Striker, job: Job, abort: Abort) -> Iterator[None]:
        """Let the job's streams pass relays if there are faults for them. Raises OSError at the end
        if the engine's last bytes did not pass."""
        request = job.request
        saving = request.operation is Operation.SAVE
        points = [fault.point for fault in striker.here]
        main = any(_is_of_stream(point) and not _is_back(point) for point in points)
        back = any(map(_is_back, points)) and request.back_fd >= 0
        if request.back_fd == request.io_fd:
            main = back = main or back
        wanted = [("stream", request.io_fd, saving)] * main
        wanted += [("back", request.back_fd, not saving)] * back
        ends: Ends | None = None
        for name, fd, writing in wanted:
            # If both are the same, one socket pair serves both directions.
            ends = ends.again() if ends and ends.engine == fd else _interpose(fd)
            self._relays.append(StreamRelay(name, ends, abort, striker, writing=writing))
        self._limit = job.stall_limit
        for relay in self._relays:
            # A back channel without postcopy is the toolstack's.
            if relay.point == "stream" or request.postcopy:
                relay.turn.set()
            relay.start()
        try:
            yield
            self._settle()
        finally:
            self._relays = []

    def _settle(self) -> None:
        for relay in self._relays:
            if relay.writing:
                relay.settle(self._limit)


def _is_of_stream(point: Point) -> bool:
    return point.kind in {Kind.STREAM, Kind.RECORD}


def _is_back(point: Point) -> bool:
    return _is_of_stream(point) and point.of in {"back", *(kind.name for kind in BACK_RECORDS)}


def _interpose(fd: int) -> Ends:
    real = os.dup(fd)
    engine, ours = socket.socketpair()
    for end in (engine, ours):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LEAD)
    os.dup2(engine.fileno(), fd, inheritable=False)
    engine.close()
    return Ends(fd, ours, real)
