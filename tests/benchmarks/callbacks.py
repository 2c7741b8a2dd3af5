"""What a callback costs, and how soon a helper is ready."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import limits
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest as Request
from xen_save_helper.ipc_schema.channel.messages import Operation, PrecopyPolicy
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.helpers.request import HelperResult, OwnHelper
from xen_save_helper.toolstack.helpers.supervisor import SaveHelper
from xen_save_helper.toolstack.limits import Limits


async def _run_helper(program: OwnHelper, trace: Trace) -> HelperResult:
    """Run a helper, and answer all its callbacks at once."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[HelperResult] = loop.create_future()
    null = os.open(os.devnull, os.O_WRONLY)

    def suspend() -> None:
        loop.call_soon(helper.async_callback_done, 1)

    helper = SaveHelper(
        Request(Operation.SAVE, domid=1, io_fd=null, hypervisor="sim:/nonexistent"),
        {"suspend": suspend, "precopy_policy": lambda **_: int(PrecopyPolicy.CONTINUE_PRECOPY)},
        ended.set_result,
        limits=Limits(),
        trace=trace,
        program=program,
    )
    helper.start()
    try:
        return await ended
    finally:
        os.close(null)


def round_trips() -> dict[str, list[float]]:
    """Seconds of each `sync` and `async` callback between our helper's end and controller's."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "times")
        peer = ("-m", "tests.benchmarks.callback_peer", str(result), str(limits.FAR))
        program = OwnHelper((sys.executable, *peer))
        with limits.on(limits.NEAR):
            ended = asyncio.run(_run_helper(program, Trace("controller")))
        if ended.rc:
            raise RuntimeError(f"the callback peer failed: {ended.reason}")
        times: dict[str, list[float]] = json.loads(result.read_text())
        return times


def helper_start() -> float:
    """Seconds from a helper's start to its hello."""
    greeted: list[float] = []

    def note(line: bytes) -> None:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "helper_ready":
            greeted.append(time.perf_counter())

    started = time.perf_counter()
    asyncio.run(_run_helper(OwnHelper(), Trace("controller", note)))
    return greeted[0] - started
