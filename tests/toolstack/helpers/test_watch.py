"""What a helper's watch takes for a sign of life, shown on a fake process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from xen_save_helper.helper.watchdog import _LAST_PART, limit_of
from xen_save_helper.ipc_schema.channel import waits
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.toolstack.helpers.launch import HelperLaunch
from xen_save_helper.toolstack.helpers.request import OwnHelper
from xen_save_helper.toolstack.helpers.watch import HelperWatch
from xen_save_helper.toolstack.limits import Limits

LIMIT = 0.16


class FakeProcess:
    """A process that has moved `moved(n)` bytes at its n-th look; `looks` counts these."""

    def __init__(self, moved: Callable[[int], int], stops: bool = False) -> None:
        self.looks = 0
        self.nudges = 0
        self.moved = moved
        self._stops = stops

    def stopped(self) -> bool:
        return self._stops

    def bytes_moved(self) -> int:
        self.looks += 1
        return self.moved(self.looks)

    def nudge(self) -> None:
        self.nudges += 1


def watch(
    process: FakeProcess,
    *,
    looks: int = 60,
    waits: bool = False,
    speaks: bool = False,
    told: Callable[[str], object] = lambda _line: None,
) -> list[str]:
    """Return what the watch has said after `looks` looks, or as soon as it says something."""

    async def run() -> list[str]:
        said: list[str] = []
        watching = HelperWatch(
            process, silence=LIMIT, waits=lambda: waits, told=told, over=said.append
        )
        while not said and process.looks < looks:
            if speaks:
                watching.heard()
            await asyncio.sleep(0.005)
        watching.cancel()
        return said

    return asyncio.run(run())


SILENT = ["the helper has said nothing and moved no byte for 0.16 s"]


def test_one_that_does_nothing_is_nudged_once_before_it_is_over() -> None:
    process = FakeProcess(lambda _: 5)
    assert watch(process) == SILENT
    assert process.nudges == 1


def test_a_few_bytes_on_its_channel_are_not_a_sign() -> None:
    assert watch(FakeProcess(lambda look: 8 * (look % 2))) == SILENT


@pytest.mark.parametrize(
    "moved",
    [
        pytest.param(lambda look: 10 * look, id="few at each look"),
        pytest.param(lambda look: 10_000 - 70 * look, id="counts of children that ended are lost"),
    ],
)
def test_one_that_moves_bytes_is_left_alone(moved: Callable[[int], int]) -> None:
    assert watch(FakeProcess(moved)) == []


def test_one_that_has_got_far_when_it_is_nudged_is_left_alone() -> None:
    process = FakeProcess(lambda _: 0)
    process.moved = lambda _: 1000 * process.nudges
    assert watch(process) == []
    assert process.nudges > 1


@pytest.mark.parametrize("signs", [{"speaks": True}, {"waits": True}])
def test_one_that_speaks_or_waits_for_an_answer_is_left_alone(signs: dict[str, Any]) -> None:
    assert watch(FakeProcess(lambda _: 0), **signs) == []


def test_a_wait_and_its_end_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "PERIOD", 0.04)
    told: list[str] = []
    assert watch(FakeProcess(lambda look: 0 if look < 10 else 100 * look), told=told.append) == []
    assert told[0] == "the stream has stood still for 0 s: waiting for the other side"
    assert told[-1] == "the other side goes on after 0 s"


def test_one_that_is_stopped_is_not_silent() -> None:
    assert watch(FakeProcess(lambda _: 0, stops=True)) == []


@pytest.mark.parametrize("operation", Operation)
def test_the_helpers_own_watchdog_acts_first(operation: Operation) -> None:
    launch = HelperLaunch(HelperRequest(operation, 1, 3), frozenset(), OwnHelper(), Limits())
    words = launch.command()
    given = {name: words[words.index(name) + 1] for name in ("--stream-stall", "--answer-limit")}
    limit = limit_of(*map(float, given.values()))
    assert launch.silence > limit * (1 + 1 / _LAST_PART)
