"""A process that makes a campaign's runs, one after another (`worker`), seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from xen_save_helper.toolstack.campaign.matrix import Cell, GuestKind, guest_for
from xen_save_helper.toolstack.campaign.run import Verdict
from xen_save_helper.toolstack.campaign.worker import unjudged
from xen_save_helper.toolstack.limits import Limits

RUN_LIMIT: Final = 300.0
"""Seconds for one run, several times what the slowest take: each of its waits has a limit."""

_TRIES: Final = 3

_END_LIMIT: Final = 30.0
"""Seconds for a process to end once its stdin is closed."""

_LONGEST_LINE: Final = 64 << 20
"""Bytes of a verdict with its trace."""


def request(
    cell: Cell, usual_guest: GuestKind, limits: Limits, *, must_fire: bool
) -> dict[str, Any]:
    """What `verdict_by` wants to know of a run, in JSON's types.

    `must_fire`: a run of the matrix shows nothing if the fault that it aims at does not fire. Such
    a run is repeated: it is up to the guest whether it touches a page in time.
    """
    return {
        "run": {
            "mode": cell.mode.value,
            "plan": str(cell.seeded),
            **guest_for(cell.plan, usual_guest)._asdict(),
            "limits": asdict(limits),
        },
        "must_fire": str(cell.aim) if must_fire else None,
    }


async def verdict_by(process: RunProcess, asked: Mapping[str, Any]) -> Verdict:
    """The verdict on a run that `request` describes, which `process` makes. Raises as
    `RunProcess.run`."""
    aim = asked["must_fire"]
    for _ in range(_TRIES):
        verdict = await process.run(asked["run"])
        if verdict.problems or aim is None or aim in verdict.fired:
            return verdict
    return replace(verdict, holds=False)


class RunProcess:
    """A process that makes runs, one after another; it is replaced if it had to be killed."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, asked: Mapping[str, Any]) -> Verdict:
        """Make a run and judge it; `asked` is a request of `worker`. A cancellation ends the run.
        Raises OSError if the process cannot start."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "xen_save_helper.toolstack.campaign.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(RUN_LIMIT):
                return Verdict.from_json(await self._ask(asked))
        except TimeoutError:
            problem = f"the run had not ended after {RUN_LIMIT:.0f} s"
        except (ConnectionError, ValueError) as bad:
            problem = f"the process that made the run has failed: {bad}"
        except asyncio.CancelledError:
            await self.end()
            raise
        await self._kill()
        return unjudged(asked["mode"], asked["plan"], problem)

    async def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ConnectionError without an answer, ValueError for an answer that is not JSON."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError(f"it ended with exit status {await process.wait()}")
        fields: dict[str, Any] = json.loads(line)
        return fields

    async def end(self) -> None:
        """End the process in order, and with it the run that it makes."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_LIMIT):
                await self._process.wait()
        except TimeoutError:
            await self._kill()
        self._process = None

    async def _kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._process = None
