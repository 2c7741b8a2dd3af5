"""A cancelled operation ends in order, and the cancellation goes on: asyncio's contract."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import HostFactory
from tests.toolstack.two_hosts import MEMORY, Side, cancelled, run
from tests.waiting import wait_for
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.cancellation import end_in_order, spawn, told
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.operations.domain_save import SUSPEND_LIVE, domain_suspend
from xen_save_helper.toolstack.operations.save import SaveResult
from xen_save_helper.toolstack.xl import save_file
from xen_save_helper.toolstack.xl.migrate import migrate
from xen_save_helper.toolstack.xl.migrate_options import CommandDestination, MigrateOptions
from xen_save_helper.toolstack.xl.outcome import MigrationResult, Outcome

SLOW = 1 << 20
"""Octets a second: a save takes seconds."""


class Work:
    """An operation that takes `steps` turns of the loop, whatever cancellations come, and notes
    what came of it; where it `ignores` them it comes to a good end."""

    def __init__(self, steps: int = 3, *, ignores: bool = False) -> None:
        self.ended: list[str] = []
        self.cancellations = 0
        self._steps = steps
        self._ignores = ignores

    async def run(self) -> str:
        for _ in range(self._steps):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                self.cancellations += 1
        return "whole" if self._ignores or not self.cancellations else "aborted"

    async def operation(self) -> str:
        return await end_in_order(self.run(), self.ended.append)


class TestContract:
    """What asyncio's own tools make of it, without guests."""

    def test_what_is_no_function_is_refused_before_anything_begins(self) -> None:
        work = Work()
        with pytest.raises(TypeError, match="on_end: want a function, not 3"):
            asyncio.run(end_in_order(work.run(), 3))

    def test_a_timeout_is_one(self) -> None:
        work = Work(steps=100_000)

        async def limited() -> None:
            task = asyncio.current_task()
            assert task is not None
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await work.operation()
            assert task.cancelling() == 0
            await asyncio.sleep(0)  # no cancellation is left over

        asyncio.run(limited())
        assert work.ended == ["aborted"]

    def test_of_two_timeouts_the_outer_one_tells(self) -> None:
        work = Work(steps=100_000)

        async def twice_limited() -> None:
            async with asyncio.timeout(0.01):
                async with asyncio.timeout(0.001):
                    await work.operation()
                pytest.fail("the outer limit had passed, too")

        async def limited() -> None:
            task = asyncio.current_task()
            assert task is not None
            with pytest.raises(TimeoutError):
                await twice_limited()
            assert task.cancelling() == 0

        asyncio.run(limited())
        assert work.ended == ["aborted"]

    def test_each_cancellation_is_counted_for_who_made_it(self) -> None:
        work = Work(steps=20)

        async def cancel() -> None:
            task = asyncio.ensure_future(work.operation())
            for _ in range(3):
                await asyncio.sleep(0)
                task.cancel("enough")
            assert await cancelled(task, work.ended) == "aborted"
            assert task.cancelling() == 3

        asyncio.run(cancel())
        assert work.cancellations == 3

    def test_one_that_comes_too_late_goes_on_all_the_same(self) -> None:
        work = Work(ignores=True)

        async def cancel() -> None:
            task = asyncio.ensure_future(work.operation())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            assert await cancelled(task, work.ended) == "whole"

        asyncio.run(cancel())

    def test_siblings_of_a_group(self) -> None:
        work = Work(steps=100_000)

        async def sibling() -> None:
            await asyncio.sleep(0.01)
            raise LookupError("the sibling's own")

        async def group() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(work.operation())
                tasks.create_task(sibling())

        with pytest.raises(ExceptionGroup) as raised:
            asyncio.run(group())
        assert [type(error) for error in raised.value.exceptions] == [LookupError]
        assert work.ended == ["aborted"]

    def test_an_end_that_is_an_error_is_the_cause(self) -> None:
        async def fail() -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise OSError("aborted, and all is as it was") from None
            return ""

        async def cancel() -> None:
            task = asyncio.ensure_future(end_in_order(fail()))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as raised:
                await task
            assert str(raised.value.__cause__) == "aborted, and all is as it was"
            again = asyncio.ensure_future(told(lambda on_end: end_in_order(fail(), on_end)))
            await asyncio.sleep(0.01)
            again.cancel()
            with pytest.raises(OSError, match="all is as it was"):
                await again

        asyncio.run(cancel())

    def test_a_fault_of_the_program_outranks_it(self) -> None:
        async def fault() -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise LookupError("a fault") from None
            return ""

        async def cancel() -> None:
            task = asyncio.ensure_future(end_in_order(fault()))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(LookupError):
                await task

        asyncio.run(cancel())

    def test_the_end_of_the_loop_reaches_the_operation_before_its_parts(self) -> None:
        heard: list[str] = []

        async def part() -> None:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                heard.append("the part was cancelled")
                raise

        async def work() -> str:
            parts = spawn(part())
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                heard.append("the operation")
            await parts
            return "aborted"

        tasks: list[asyncio.Task[str]] = []

        async def main() -> None:
            tasks.append(asyncio.ensure_future(end_in_order(work(), heard.append)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        asyncio.run(main())
        assert heard == ["the operation", "aborted"]


@pytest.fixture
def source(host_factory: HostFactory) -> Side:
    return Side(host_factory("source"))


@pytest.fixture
def domid(source: Side) -> int:
    return source.host.create_guest("g", MEMORY, "random")


@pytest.fixture
def link() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.usefixtures("no_leaks")
class TestOperations:
    def test_a_save_under_a_timeout(
        self, source: Side, domid: int, link: tuple[socket.socket, socket.socket]
    ) -> None:
        """Nobody reads: the helper is blocked in its write when the limit passes."""
        ended: list[SaveResult] = []

        async def limited() -> None:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(None) as limit:
                source.happenings.at(
                    "callback precopy_policy", lambda: limit.reschedule(loop.time())
                )
                await domain_suspend(
                    source.ctx, domid, link[0].fileno(), SUSPEND_LIVE, on_end=ended.append
                )

        with pytest.raises(TimeoutError):
            run(limited())
        (result,) = ended
        assert result.rc is Error.ABORTED
        assert result.suspended == (source.state() is GuestState.SUSPENDED)
        assert "logdirty_off" not in source.happenings.names(), "its own error path ran"
        source.at_rest(domid)

    def test_a_save_that_a_background_task_makes_when_the_loop_ends(
        self, source: Side, domid: int, link: tuple[socket.socket, socket.socket]
    ) -> None:
        ended: list[SaveResult] = []
        tasks: list[asyncio.Task[SaveResult]] = []

        async def main() -> None:
            at_work = asyncio.Event()
            source.happenings.at("helper_ready", at_work.set)
            save = domain_suspend(source.ctx, domid, link[0].fileno(), on_end=ended.append)
            tasks.append(asyncio.ensure_future(save))
            await at_work.wait()

        asyncio.run(main())
        assert [result.rc for result in ended] == [Error.ABORTED]
        assert tasks[0].cancelled()
        source.at_rest(domid)

    def test_a_save_into_a_file(self, source: Side, domid: int, tmp_path: Path) -> None:
        path = tmp_path / "g.save"

        async def cancel() -> BaseException | None:
            task = asyncio.ensure_future(save_file.save(source.ctx, domid, path, bandwidth=SLOW))
            source.happenings.at("helper_ready", task.cancel)
            with pytest.raises(asyncio.CancelledError) as raised:
                await task
            return raised.value.__cause__

        cause = run(cancel())
        assert isinstance(cause, save_file.SaveFileError)
        assert "cancelled" in str(cause)
        assert "the guest is running here" in str(cause)
        assert list(tmp_path.glob("*save*")) == []
        source.at_rest(domid)

    def test_a_migration(self, source: Side, domid: int) -> None:
        ended: list[MigrationResult] = []

        async def cancel() -> MigrationResult:
            task = asyncio.ensure_future(
                migrate(
                    source.ctx,
                    domid,
                    CommandDestination("exec sleep 60"),
                    MigrateOptions(),
                    on_end=ended.append,
                )
            )
            source.happenings.at("handshake", task.cancel)
            return await cancelled(task, ended)

        source.limited(abort=0.5)
        result = run(cancel())
        assert result.outcome is Outcome.RUNNING_AT_SOURCE
        assert result.rc is Error.ABORTED
        source.at_rest(domid)

    def test_a_ctrl_c(self, source: Side, domid: int) -> None:
        """A program of a user's, which handles no signal."""
        program = (
            "import asyncio, socket, sys\n"
            "from xen_save_helper.toolstack import Context, domain_suspend\n"
            "ours, theirs = socket.socketpair()\n"
            "ctx = Context.open(sys.argv[1], log=lambda level, context, text: print(text))\n"
            "print('at work', flush=True)\n"
            "def told(result): print('ended', int(result.rc), flush=True)\n"
            "asyncio.run(domain_suspend(ctx, int(sys.argv[2]), ours.fileno(), on_end=told))\n"
            "print('returned', flush=True)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, f"sim:{source.host.directory}", str(domid)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            while "at work" not in process.stdout.readline():
                pass
            controller = psutil.Process(process.pid)
            wait_for(controller.children, "the helper runs")
            os.kill(process.pid, signal.SIGINT)
            said, complaint = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT  # 130, as a shell has it
        assert f"ended {int(Error.ABORTED)}" in said
        assert "returned" not in said
        assert complaint.strip().endswith("KeyboardInterrupt")
        source.at_rest(domid)
