"""The log of a wait for the other side."""

from __future__ import annotations

import asyncio

import pytest

from xen_save_helper.ipc_schema.channel import waits
from xen_save_helper.toolstack.helpers.wait_log import READY, STREAM, WaitLog, telling_of


def test_a_line_each_minute_and_one_when_it_is_over() -> None:
    told: list[str] = []
    log = WaitLog(STREAM, told.append)
    for quiet in (0.0, 59.0, 60.0, 100.0, 125.0, 0.0, 1.0):
        log.look(quiet)
    assert told == [
        "the stream has stood still for 60 s: waiting for the other side",
        "the stream has stood still for 125 s: waiting for the other side",
        "the other side goes on after 125 s",
    ]


def test_a_short_wait_is_not_logged() -> None:
    told: list[str] = []
    log = WaitLog(STREAM, told.append)
    for quiet in (0.0, 59.0, 0.0):
        log.look(quiet)
    assert told == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_wait_in_a_context(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    monkeypatch.setattr(waits, "PERIOD", 1.0)
    told: list[str] = []

    async def wait() -> None:
        came = asyncio.Event()

        def tell(line: str) -> None:
            told.append(line)
            came.set()

        with telling_of(READY, tell):
            async with asyncio.timeout(20):
                await came.wait()
            if fails:
                raise ValueError("it disconnected")

    if fails:
        with pytest.raises(ValueError, match="it disconnected"):
            asyncio.run(wait())
    else:
        asyncio.run(wait())
    still = "the receiver has not said that it is ready for 1 s: waiting for the other side"
    assert told == ([still] if fails else [still, "the other side goes on after 1 s"])
