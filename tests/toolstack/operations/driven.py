"""Surroundings of a save or restore that do what a test says, when it says so.

Only the edges are driven: the clock, bytes in and out of descriptors, calls beside the loop, the
helper's process and its messages, the host. Everything between them is real: the operation, its
machines and the join, the supervision of the helper, the suspension of the guest.
"""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from tests.toolstack.operations.driven_host import DOMID, PID
from xen_save_helper.ipc_schema.channel import waits
from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, Answer, Message
from xen_save_helper.ipc_schema.channel.turn_taking import PipeControllerEnd, TurnError
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.ipc_schema.trace_events import why_not_catalogued
from xen_save_helper.toolstack.aio import blocking, fd_io
from xen_save_helper.toolstack.helpers import supervisor as save_helper
from xen_save_helper.toolstack.helpers.channel import ChannelListener, HelperProcessArguments
from xen_save_helper.toolstack.helpers.launch import HelperLaunch

_TURNS = 16
"""Turns of the loop after which nothing may be left that could happen by itself."""


class Time(asyncio.SelectorEventLoop):
    """A loop that never waits, and whose clock advances when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Let everything happen that can happen now."""
        for _ in range(_TURNS):
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready and not self._due():
                return

    def _due(self) -> bool:
        """Whether a timer's moment has come."""
        timers = self._scheduled
        return any(timer.when() <= self.now and not timer.cancelled() for timer in timers)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    def descriptors(self) -> int:
        """The number of descriptors that the loop watches for others."""
        # One is its own.
        return len(self._selector.get_map()) - 1


class Waiting:
    """Something that was begun. It ends by `succeed` or `fail`, by its limit, or by `cancel`."""

    def __init__(
        self,
        world: World,
        what: str,
        limit: float,
        done: Callable[[Exception | None], None],
        action: Callable[[], object] = lambda: None,
    ) -> None:
        self.what = what
        self.action = action
        self._world = world
        self._done = done
        self.without_limit = not limit
        late = TimeoutError(f"{what}: nothing for {limit:g} s")
        self._timer = world.loop.call_later(limit or math.inf, self.fail, late)
        world.waiting.append(self)

    def _over(self) -> None:
        self._timer.cancel()
        self._world.waiting.remove(self)

    def succeed(self) -> None:
        """Let it take its effect, which may be an error."""
        self._over()
        try:
            self.action()
        except (OSError, ValueError) as error:
            self._done(error)
        else:
            self._done(None)

    def fail(self, error: Exception) -> None:
        self._over()
        self._world.broke(self)
        self._done(error)

    def cancel(self) -> None:
        if self in self._world.waiting:
            self._over()
            self._world.broke(self)


class DrivenProcess:
    """HelperProcess that lives until `exits`."""

    def __init__(
        self, world: World, ended: Callable[[int], Coroutine[Any, Any, None]], **_more: object
    ) -> None:
        self.pid = PID
        self.alive = True
        self.killed = False
        self.terminated = False
        self.dying = False
        self._world = world
        self._ended = ended

    def terminate(self) -> None:
        assert self.alive, "SIGTERM to a process that is gone"
        self.terminated = True

    def kill(self) -> None:
        assert self.alive, "SIGKILL to a process that is gone"
        self.killed = True

    def stopped(self) -> bool:
        return False

    def exiting(self) -> bool:
        return self.dying or not self.alive

    def bytes_moved(self) -> int:
        """It is never silent: it moves one byte per millisecond."""
        return int(1000 * self._world.loop.now)

    def nudge(self) -> None:
        raise AssertionError("it was not silent")

    def exits(self, status: int) -> None:
        assert self.alive
        self.alive = False
        self._world.tasks.append(self._world.loop.create_task(self._ended(status)))


class DrivenChannel:
    """HelperChannel, with the turns of libxl's pipes. `broken`: no answer can be written.
    `unread`: messages of the helper that are read only after its end."""

    def __init__(self, launch: HelperLaunch, listener: ChannelListener) -> None:
        self.listening = False
        self.closed = False
        self.broken = False
        self.unread: list[tuple[str, Mapping[str, Any]]] = []
        self.answers: list[tuple[str, int]] = []
        self.waiting = ""
        """The callback that is not answered yet."""
        self._listener = listener
        self._turns = PipeControllerEnd(launch.request.operation, launch.provided)

    @property
    def process_arguments(self) -> HelperProcessArguments:
        return HelperProcessArguments((), ())

    def listen(self) -> None:
        self.listening = True

    def stop_listening(self) -> None:
        self.listening = False

    def start(self, fields: dict[str, Any]) -> None:
        assert fields["domid"] == DOMID
        self._check()

    def answer(self, message: Message, value: int) -> None:
        assert not self.closed
        assert message.name == self.waiting, f"{message.name} is answered, {self.waiting!r} waits"
        self._check()
        self._turns.sending("reply" if message.answer is Answer.SYNC else "async_callback_done")
        self.answers.append((message.name, value))
        self.waiting = ""

    def abort(self, rc: int, reason: str) -> None:
        assert not self.closed
        assert rc
        assert reason
        self._check()

    async def drain(self, limit: float) -> None:
        assert limit > 0
        if self.unread:
            self.broken = True  # nobody is left to take an answer
            for name, fields in self.unread:
                self.says(name, fields)
            await asyncio.sleep(limit)

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        self.listening = False

    def _check(self) -> None:
        if self.broken:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    # What the helper does

    def hello(self) -> None:
        self._listener.hello()

    def says(self, name: str, fields: Mapping[str, Any]) -> None:
        """Send a message; one out of turn breaks the protocol, as it does on every channel."""
        message = CATALOGUE[name]
        try:
            self._turns.received(message, dict(fields))
        except TurnError as error:
            self._listener.violation(f"the helper broke the protocol: {error}")
            return
        if message.answer is not Answer.NONE:
            self.waiting = name
        self._listener.message(message, dict(fields))

    def garbage(self) -> None:
        self._listener.violation("the helper broke the protocol: number 99")

    def hangs_up(self) -> None:
        self._listener.lost("the helper closed its pipe")


class World:
    """Everything around one operation. `close` restores what was replaced."""

    def __init__(self) -> None:
        self.loop = Time()
        self.waiting: list[Waiting] = []
        """Transfers and calls in progress."""
        self.broken: list[str] = []
        """The ones that were cut off: cancelled, failed or too slow."""
        self.processes: list[DrivenProcess] = []
        self.channels: list[DrivenChannel] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.faults: list[str] = []
        self.trace: list[dict[str, Any]] = []
        self.cannot_start = False
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.loop.set_exception_handler(self._fault)
        self._patch = pytest.MonkeyPatch()
        # The clock advances in leaps, in which the process does run.
        self._patch.setattr(waits, "_COUNTED", math.inf)
        self._patch.setattr(blocking, "call", self._call)
        self._patch.setattr(fd_io, "start_write", self._start_write)
        self._patch.setattr(fd_io, "read_exactly", self._read_exactly)
        self._patch.setattr(save_helper, "HelperProcess", self._process)

        def channel(launch: HelperLaunch, listener: ChannelListener) -> DrivenChannel:
            self.channels.append(DrivenChannel(launch, listener))
            return self.channels[-1]

        self._patch.setattr(HelperLaunch, "channel", channel)
        self.on_write: Callable[[bytes], None] = lambda _data: None
        """A write of these bytes begins."""
        self.written: Callable[[bytes], None] = lambda _data: None
        """All of these bytes are out."""
        self.next_bytes: Callable[[int], bytes] = lambda _size: b""
        """The next bytes, of the given number, of a stream that is read."""

    def close(self) -> None:
        self._patch.undo()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.settle()
        self.loop.close()
        os.close(self.null)

    def _fault(self, _loop: object, context: dict[str, Any]) -> None:
        self.faults.append(f"{context['message']}: {context.get('exception')!r}")

    def must(self, holds: bool, what: str) -> None:
        """Assert, in a place where an exception would pass for a failure of an edge."""
        if not holds:
            self.faults.append(what)

    def tracer(self) -> Trace:
        return Trace("controller", self._traced)

    def _traced(self, line: bytes) -> None:
        event = json.loads(line)
        self.must(not list(why_not_catalogued(event)), f"not in the catalogue: {event}")
        self.trace.append(event)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.trace if event["event"] == name]

    def do(self, act: Callable[[], object]) -> None:
        """Call `act` on the loop, and let happen what follows from it."""
        self.loop.call_soon(act)
        self.loop.settle()

    def broke(self, waiting: Waiting) -> None:
        self.broken.append(waiting.what)

    # The edges

    async def _call(self, limit: float, function: Callable[..., Any], *args: object) -> Any:
        result = self.loop.create_future()
        answer: list[Any] = []

        def act() -> None:
            answer.append(function(*args))

        def done(error: Exception | None) -> None:
            if result.done():
                return
            if error is None:
                result.set_result(answer[0])
            else:
                result.set_exception(error)

        name = getattr(function, "__name__", "call")
        waiting = Waiting(self, f"call {name}", limit, done, act)
        try:
            return await result
        finally:
            waiting.cancel()

    def _start_write(
        self,
        fd: int,
        data: bytes,
        done: Callable[[Exception | None], None],
        *,
        limit: float,
        what: str,
    ) -> Waiting:
        assert fd == self.null
        self.on_write(data)
        return Waiting(self, f"write {what}", limit, done, partial(self.written, data))

    async def _read_exactly(self, fd: int, size: int, *, limit: float, what: str) -> bytes:
        assert fd == self.null
        if not size:
            return b""
        result: asyncio.Future[None] = self.loop.create_future()

        def done(error: Exception | None) -> None:
            if result.done():
                return
            if error is None:
                result.set_result(None)
            else:
                result.set_exception(error)

        waiting = Waiting(self, f"read {what}", limit, done)
        try:
            await result
        finally:
            waiting.cancel()
        return self.next_bytes(size)

    def _process(self, _command: Sequence[str], **more: Any) -> DrivenProcess:
        if self.cannot_start:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        self.processes.append(DrivenProcess(self, **more))
        return self.processes[-1]

    @property
    def alive(self) -> DrivenProcess | None:
        """The helper's process, if it is alive."""
        return next((process for process in self.processes if process.alive), None)
