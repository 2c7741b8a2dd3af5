"""What the engine's tests share: a controller in the engine's own process, and engines in
processes of their own."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from helper.abort import Abort
from helper.hypervisors.interface import Host, SuspendState
from helper.parameters import RestoreParameters, RestoreResults, SaveParameters, Statistics
from ipc_schema.errors import DecodeError
from ipc_schema.trace import Trace

Answer = int | Callable[..., int]

LIMIT = 60.0


@dataclass
class Controller:
    """Implements helper.channel.Channel: answers callbacks by `answers`, keeps what was said."""

    answers: Mapping[str, Answer]
    calls: list[tuple[str, dict[str, int | str]]] = field(default_factory=list)
    told: list[tuple[str, dict[str, int | str]]] = field(default_factory=list)

    def provides(self, name: str) -> bool:
        return name in self.answers or name in ("log", "progress", "restore_results")

    def call(self, name: str, **fields: int | str) -> int:
        self.calls.append((name, fields))
        answer = self.answers[name]
        return answer(**fields) if callable(answer) else answer

    def tell(self, name: str, **fields: int | str) -> None:
        self.told.append((name, fields))

    def called(self, name: str) -> list[dict[str, int | str]]:
        return [fields for called, fields in self.calls if called == name]

    def logged(self) -> str:
        return "\n".join(str(fields["formatted"]) for name, fields in self.told if name == "log")


def suspend(host: Host, domid: int) -> int:
    """The suspend callback: 1 where the guest suspended within a limit."""
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
    parameters: SaveParameters = SaveParameters(),
    *,
    stall_limit: float = LIMIT,
) -> Statistics:
    """domain_save in this process, whose main thread it must be."""
    from helper.save import domain_save

    controller = controller or saving(host, domid)
    with Abort(stall_limit=stall_limit) as abort:
        domain = host.domain(domid)
        try:
            return domain_save(
                domain, io_fd, recv_fd, controller, parameters, abort, Trace("helper")
            )
        finally:
            domain.close()


def restore(
    host: Host,
    domid: int,
    io_fd: int,
    back_fd: int = -1,
    controller: Controller | None = None,
    parameters: RestoreParameters = RestoreParameters(),
    *,
    stall_limit: float = LIMIT,
) -> RestoreResults:
    """domain_restore in this process, whose main thread it must be."""
    from helper.restore import domain_restore

    controller = controller or Controller({"static_data_done": 0})
    with Abort(signals=frozenset(), stall_limit=stall_limit) as abort:
        domain = host.domain(domid)
        try:
            return domain_restore(
                domain, io_fd, back_fd, controller, parameters, abort, Trace("helper")
            )
        finally:
            domain.close()


class Process:
    """`work` in a forked process; `result` gives what it returned, or raises what it raised.

    `keep` are the descriptors that it needs: all others above 2 that the parent names in `drop`
    are closed there, so that ends of sockets are seen.
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
        with open(self._read, "rb") as pipe:
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
        if not self._reaped:
            os.waitpid(self.pid, 0)
            self._reaped = True
