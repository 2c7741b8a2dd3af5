"""Run save helpers, honest and lying ones, to their end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.helpers.request import (
    HelperProgram,
    HelperResult,
    OwnHelper,
)
from xen_save_helper.toolstack.helpers.supervisor import SaveHelper
from xen_save_helper.toolstack.limits import Limits

QUICK = Limits(helper_start=5, callback=5, abort=1)


def scripted(*steps: str) -> OwnHelper:
    """A helper that goes through these steps of `scripted_helper.Script`."""
    return OwnHelper((sys.executable, "-m", "tests.toolstack.helpers.scripted_helper", *steps))


@dataclass
class Run:
    """One run: what the controller received, and how it ended."""

    helper: SaveHelper
    result: HelperResult | None = None
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    stood_still: list[float] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for name, _fields in self.heard]

    def event(self, name: str) -> dict[str, Any]:
        return next(event for event in self.events if event["event"] == name)

    @property
    def pid(self) -> int:
        return int(self.event("helper_started")["helper"])


Reaction = Callable[[Run], int | None]


def answer(value: int) -> Reaction:
    """Answer an async callback from inside its handler."""

    def react(run: Run) -> None:
        run.helper.async_callback_done(value)

    return react


SAVE_REACTIONS: dict[str, Reaction] = {
    "log": lambda _run: None,
    "suspend": answer(1),
    "switch_qemu_logdirty": answer(0),
    "precopy_policy": lambda _run: 0,
}


def run_helper(
    program: HelperProgram,
    reactions: dict[str, Reaction] | None = None,
    *,
    request: HelperRequest | None = None,
    limits: Limits = QUICK,
    at: dict[str, Callable[[Run], None]] | None = None,
    within: float = 20,
) -> Run:
    """Run `program` to its end. `reactions` are added to a save's; `at` says what to do after an
    event of the controller's trace."""
    stream = os.open(os.devnull, os.O_WRONLY)
    try:
        if request is None:
            request = HelperRequest(Operation.SAVE, 1, stream, hypervisor="sim:/nonexistent")
        return asyncio.run(_run(program, reactions or {}, request, limits, at or {}, within))
    finally:
        os.close(stream)


async def _run(
    program: HelperProgram,
    reactions: dict[str, Reaction],
    request: HelperRequest,
    limits: Limits,
    at: dict[str, Callable[[Run], None]],
    within: float,
) -> Run:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    base = SAVE_REACTIONS if request.operation is Operation.SAVE else {}

    class Events(Trace):
        def event(self, event: str, **fields: object) -> None:
            run.events.append({"event": event, **fields})
            if event in at:
                loop.call_soon(at[event], run)

    def handler(name: str, react: Reaction) -> Callable[..., int | None]:
        def handle(**fields: Any) -> int | None:
            run.heard.append((name, fields))
            return react(run)

        return handle

    def done(result: HelperResult) -> None:
        assert run.result is None
        run.result = result
        ended.set_result(None)

    callbacks = {name: handler(name, react) for name, react in {**base, **reactions}.items()}
    stood_still: list[float] = []
    run = Run(
        SaveHelper(
            request,
            callbacks,
            done,
            limits=limits,
            trace=Events("controller"),
            program=program,
            stood_still=stood_still.append,
        ),
        stood_still=stood_still,
    )
    assert run.helper.running
    run.helper.start()
    assert run.result is None
    async with asyncio.timeout(within):
        await ended
    assert not run.helper.running
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return run
