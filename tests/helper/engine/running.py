"""Shared by the engine's tests: a controller in the engine's own process, and engines in child
processes."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.helper.job import Job, RestoreResults, StreamCounts
from xen_save_helper.ipc_schema.board import Board
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation, XCFlags
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.hosts.interface import SuspendState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost as Host

Answer = int | Callable[..., int]

LIMIT = 60.0


def save_job(
    *, live: bool = False, debug: bool = False, stall_limit: float = LIMIT, **fields: Any
) -> Job:
    """A job for `save`, which fills in domain and descriptors."""
    xcflags = XCFlags.LIVE * live | XCFlags.DEBUG * debug
    return Job(HelperRequest(Operation.SAVE, -1, -1, xcflags=xcflags, **fields), stall_limit)


def restore_job(*, stall_limit: float = LIMIT, **fields: Any) -> Job:
    """A job for `restore`, which fills in domain and descriptors."""
    return Job(HelperRequest(Operation.RESTORE, -1, -1, **fields), stall_limit)


def job_on(job: Job, domid: int, io_fd: int, back_fd: int) -> Job:
    return job._replace(request=job.request._replace(domid=domid, io_fd=io_fd, back_fd=back_fd))


PLAIN_SAVE = save_job()
PLAIN_RESTORE = restore_job()


@dataclass
class Controller:
    """A `Channel` that answers callbacks from `answers` and records all messages."""

    answers: Mapping[str, Answer]
    calls: list[tuple[str, dict[str, int | str]]] = field(default_factory=list)
    told: list[tuple[str, dict[str, int | str]]] = field(default_factory=list)

    def provides(self, name: str) -> bool:
        return name in self.answers or name in ("log", "progress", "restore_results")

    def call(self, name: str, **fields: int | str) -> int:
        self.calls.append((name, fields))
        answer = self.answers[name]
        return answer(**fields) if callable(answer) else answer

    def wait_for_ever(self) -> None:
        """Do nothing: answers come at once."""

    def tell(self, name: str, **fields: int | str) -> None:
        self.told.append((name, fields))

    def called(self, name: str) -> list[dict[str, int | str]]:
        return [fields for called, fields in self.calls if called == name]

    def logged(self) -> str:
        return "\n".join(str(fields["formatted"]) for name, fields in self.told if name == "log")


def suspend(host: Host, domid: int) -> int:
    """The suspend callback: 1 if the guest suspended in time."""
    request = host.suspend_request(domid)
    try:
        poll = select.poll()
        poll.register(request.fileno(), select.POLLIN)
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            state = request.state()
            if state is SuspendState.SUSPENDED:
                return 1
            if state in (SuspendState.REFUSED, SuspendState.CRASHED):
                return 0
            poll.poll(1000)
        return 0
    finally:
        request.close()


def saving(host: Host, domid: int, **more: Answer) -> Controller:
    """A controller that suspends the guest when asked to; `more` adds and replaces answers."""

    def logdirty(domid: int, enable: int) -> int:
        host.switch_qemu_logdirty(domid, bool(enable))
        return 0

    answers: dict[str, Answer] = {
        "suspend": lambda: suspend(host, domid),
        "switch_qemu_logdirty": logdirty,
    }
    return Controller({**answers, **more})


def save(
    host: Host,
    domid: int,
    io_fd: int,
    recv_fd: int = -1,
    controller: Controller | None = None,
    job: Job = PLAIN_SAVE,
    *,
    stall_limit: float = LIMIT,
    board: Board | None = None,
) -> StreamCounts:
    """Run domain_save in this process, in its main thread."""
    from xen_save_helper.helper.engine.save import domain_save

    controller = controller or saving(host, domid)
    with Abort(stall_limit=stall_limit) as abort:
        domain = open_on_host(host.directory, domid)
        try:
            statistics = StreamCounts()
            wanted = job_on(job, domid, io_fd, recv_fd)
            reporter = Reporter(controller, abort, Trace("helper"), board=board)
            domain_save(domain, Environment(wanted, reporter, abort, statistics))
            return statistics
        finally:
            domain.close()


def restore(
    host: Host,
    domid: int,
    io_fd: int,
    back_fd: int = -1,
    controller: Controller | None = None,
    job: Job = PLAIN_RESTORE,
    *,
    stall_limit: float = LIMIT,
) -> RestoreResults:
    """Run domain_restore in this process, in its main thread."""
    from xen_save_helper.helper.engine.restore import domain_restore

    controller = controller or Controller({"static_data_done": 0})
    with Abort(signals=frozenset(), stall_limit=stall_limit) as abort:
        domain = open_on_host(host.directory, domid)
        try:
            wanted = job_on(job, domid, io_fd, back_fd)
            reporter = Reporter(controller, abort, Trace("helper"))
            return domain_restore(domain, Environment(wanted, reporter, abort, StreamCounts()))
        finally:
            domain.close()


class Process:
    """Runs `work` in a forked process; `result` returns its value, or raises its exception.

    The descriptors in `drop` are closed there, so that sockets end when they should.
    """

    def __init__(self, work: Callable[[], Any], drop: tuple[int, ...] = ()) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(read)
                for fd in drop:
                    os.close(fd)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                try:
                    outcome: tuple[bool | None, Any] = (True, work())
                except DecodeError as error:
                    outcome = (None, (error.what, error.offset, error.problem))
                except BaseException as error:
                    outcome = (False, error)
                with open(write, "wb") as pipe:
                    pickle.dump(outcome, pipe)
            finally:
                os._exit(0)
        os.close(write)
        self._read = read
        self._reaped = False

    def result(self, limit: float = LIMIT) -> Any:
        read, self._read = self._read, -1
        with open(read, "rb") as pipe:
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            if not poll.poll(limit * 1000):
                self.kill()
                raise TimeoutError(f"the process has no result after {limit} s")
            good, value = pickle.load(pipe)
        self.wait()
        if good:
            return value
        if good is None:
            raise DecodeError(*value)
        raise value

    def kill(self) -> None:
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            self._read = -1
        if not self._reaped:
            os.waitpid(self.pid, 0)
            self._reaped = True


def restore_emulator(source: Host, domid: int, target: Host, new: int) -> None:
    """Transfer the contents of libxl's own records."""
    target.restore_emulator(
        new, source.emulator_xenstore_data(domid), source.emulator_context(domid)
    )


@dataclass
class Migration:
    """A guest on one host, an empty domain on another, and a socket between them."""

    source: Host
    domid: int
    target: Host
    new: int
    near: socket.socket
    far: socket.socket
    receiver: Process | None = None

    def receive(
        self,
        job: Job = PLAIN_RESTORE,
        controller: Controller | None = None,
    ) -> None:
        """Start the restoring process. Without `controller`, the guest is resumed here at the
        postcopy transition."""

        def resume() -> int:
            restore_emulator(self.source, self.domid, self.target, self.new)
            self.target.unpause(self.new)
            return 1

        answering = controller or Controller({"static_data_done": 0, "postcopy_transition": resume})
        far = self.far.fileno()
        self.receiver = Process(
            lambda: restore(self.target, self.new, far, far, answering, job),
            drop=(self.near.fileno(),),
        )
        self.far.close()

    def send(self, job: Job = PLAIN_SAVE, **answers: Answer) -> tuple[StreamCounts, Controller]:
        controller = saving(self.source, self.domid, **answers)
        near = self.near.fileno()
        return save(self.source, self.domid, near, near, controller, job), controller

    def received(self) -> RestoreResults:
        assert self.receiver is not None
        results = self.receiver.result()
        assert isinstance(results, RestoreResults)
        return results

    def run_at_target(self) -> None:
        restore_emulator(self.source, self.domid, self.target, self.new)
        self.target.unpause(self.new)

    def close(self) -> None:
        self.near.close()
        self.far.close()
        if self.receiver is not None:
            self.receiver.kill()


@contextmanager
def migration(
    hosts: Callable[[str], Host],
    workload: str = "random",
    memory: int = 8 << 20,
    **guest: Any,
) -> Iterator[Migration]:
    """A running guest with `memory` bytes, ready to migrate. `hosts` makes a host by name."""
    source, target = hosts("source"), hosts("target")
    domid = source.create_guest("guest", memory, workload, **guest)
    new = target.create(source.config(domid), "guest")
    near, far = socket.socketpair()
    ready = Migration(source, domid, target, new, near, far)
    try:
        yield ready
    finally:
        ready.close()


def log_dirty(host: Host, domid: int) -> bool:
    (row,) = [row for row in host.domains() if row.domid == domid]
    return row.log_dirty
