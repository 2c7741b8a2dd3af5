"""Starting and ending a helper's process."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.waiting import gone, wait_for
from xen_save_helper.toolstack.helpers.process import HelperProcess

pytestmark = pytest.mark.usefixtures("no_leaks")


def sleeping(*, ignores_sigpipe: bool = True) -> tuple[HelperProcess, asyncio.Future[int]]:
    """A process that does nothing, and a future for its exit status."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def end(status: int) -> None:
        ended.set_result(status)

    process = HelperProcess(
        ("sleep", "60"),
        pass_fds=(),
        stdin=None,
        stdout=None,
        environment={},
        line=lambda _line: None,
        ended=end,
        stopped_limit=20,
        stood_still=lambda _seconds: None,
        ignores_sigpipe=ignores_sigpipe,
    )
    return process, ended


@pytest.mark.parametrize("ignores", [True, False])
def test_sigpipe_is_ignored_as_under_xl(ignores: bool) -> None:
    """A helper whose reader dies must reach its error path; other programs get the default."""

    async def run() -> int:
        process, ended = sleeping(ignores_sigpipe=ignores)
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.kill()
        async with asyncio.timeout(10):
            await ended
        (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
        return int(mask, 16)

    ignored = bool(asyncio.run(run()) & 1 << (signal.SIGPIPE - 1))
    assert ignored is ignores


def test_a_process_is_exiting_from_its_death_on() -> None:
    async def run() -> list[bool]:
        process, ended = sleeping()
        seen = [process.exiting()]
        process.kill()
        wait_for(lambda: gone(process.pid), "it is dead")
        seen.append(process.exiting())
        async with asyncio.timeout(10):
            await ended
        return [*seen, process.exiting()]

    assert asyncio.run(run()) == [False, True, True]
