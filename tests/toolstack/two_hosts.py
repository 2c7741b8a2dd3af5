"""Two hosts, their contexts, and a way to act at a given event of either side's trace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import psutil
import pytest

from tests import trace_lines
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.hosts.interface import DomainSummary, GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.operations.domain_restore import domain_create_restore
from xen_save_helper.toolstack.operations.domain_save import domain_live_migrate
from xen_save_helper.toolstack.operations.restore import RestoreResult
from xen_save_helper.toolstack.operations.save import SaveResult
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy

T = TypeVar("T")
MEMORY = 4 << 20
LIMITS = Limits(
    helper_start=20, callback=20, suspend=20, abort=5, stream_stall=20, handshake=20, ready=20
)


class Happenings:
    """The events of one side, and what to do at the first of a kind."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._hooks: dict[str, Callable[[], object]] = {}

    def at(self, event: str, do: Callable[[], object]) -> None:
        """Call `do` at the first `event`, from the loop's next turn; `callback NAME` is a certain
        callback of the helper."""
        self._hooks[event] = do

    def write(self, line: bytes) -> None:
        event = json.loads(line)
        trace_lines.check([event])
        self.events.append(event)
        for key in (event["event"], f"{event['event']} {event.get('name')}"):
            if (do := self._hooks.pop(key, None)) is not None:
                asyncio.get_running_loop().call_soon(do)

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]


@dataclass
class Side:
    """One host as a caller of the library has it."""

    host: SimulatedHost
    limits: Limits = LIMITS
    happenings: Happenings = field(default_factory=Happenings)

    @property
    def ctx(self) -> Context:
        uri = f"sim:{self.host.directory}"
        return Context(self.host, uri, Trace("controller", self.happenings.write), self.limits)

    @property
    def receiver_ctx(self) -> Context:
        """For a migration that comes here."""
        return replace(self.ctx, trace=Trace("receiver", self.happenings.write))

    def limited(self, **seconds: float) -> None:
        self.limits = replace(self.limits, **seconds)

    def row(self, name: str = "g") -> DomainSummary | None:
        return next((row for row in self.host.domains() if row.name == name), None)

    def state(self, name: str = "g") -> GuestState | None:
        row = self.row(name)
        return None if row is None else row.state

    def at_rest(self, domid: int) -> None:
        """The guest runs here, right, not log-dirty, and not to suspend later."""
        self.host.resume(domid)
        report = self.host.verify(domid, 30)
        assert report.state is GuestState.RUNNING
        assert report.memory_ok
        assert report.crash is None
        row = next(row for row in self.host.domains() if row.domid == domid)
        assert not row.log_dirty


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, within a limit, and see that no task or helper outlives it."""

    async def bounded() -> T:
        async with asyncio.timeout(30):
            result = await work
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    before = helpers()
    result = asyncio.run(bounded())
    assert helpers() == before
    return result


async def cancelled(task: asyncio.Task[T], ended: list[T]) -> T:
    """How an operation ended whose task is cancelled: it told `ended` of it, and raised."""
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    (result,) = ended
    return result


def helpers() -> list[psutil.Process]:
    """The save helpers that this process has started and that are not reaped."""
    found = []
    for process in psutil.Process().children():
        try:
            if (
                "xen_save_helper.helper.main" in process.cmdline()
                or process.status() == psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def helper_of(operation: str) -> psutil.Process:
    """The helper at work; `operation` tells which where both sides have one: the save's is the
    older."""
    both = sorted(helpers(), key=lambda process: process.create_time())
    return both[0] if operation == "save" else both[-1]


def kill_helper(operation: str, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    def kill() -> None:
        os.kill(helper_of(operation).pid, number)

    return kill


async def live_migrate(
    source: Side,
    destination: Side,
    domid: int,
    strategy: MemoryStrategy = MemoryStrategy.DEFAULT,
    *,
    name: str = "g",
    precopy: PrecopyLimits | None = None,
    bandwidth: int = 0,
    on_transition: Callable[[], None] = lambda: None,
    on_resume: Callable[[], None] = lambda: None,
    cancel_save_at: str = "",
) -> tuple[SaveResult, RestoreResult]:
    """Both sides in this process. As in life, a side that ends closes its end of the link.
    The save is cancelled at the event `cancel_save_at` of the source, where there is one."""
    ours, theirs = socket.socketpair()
    ended: list[SaveResult] = []

    async def save() -> SaveResult:
        with ours:
            return await domain_live_migrate(
                source.ctx,
                domid,
                ours.fileno(),
                0,
                ours.fileno(),
                strategy,
                precopy=precopy or PrecopyLimits(),
                bandwidth=bandwidth,
                on_transition=on_transition,
                on_end=ended.append,
            )

    async def restore() -> RestoreResult:
        with theirs:
            return await domain_create_restore(
                destination.ctx,
                source.host.config(domid),
                name,
                theirs.fileno(),
                theirs.fileno(),
                on_resume=on_resume,
            )

    task = asyncio.ensure_future(save())
    if cancel_save_at:
        source.happenings.at(cancel_save_at, task.cancel)
    restored = await restore()
    return (await cancelled(task, ended) if cancel_save_at else await task), restored
