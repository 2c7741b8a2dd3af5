from __future__ import annotations

import errno
import select
import threading
from collections.abc import Iterator

import pytest

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.watchdog import Watchdog, limit_of
from xen_save_helper.ipc_schema.channel.waits import LOOK

LIMIT = 0.4


class Barks:
    """Collects what a watchdog says, and when."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.came = threading.Event()

    def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.came.set()


@pytest.fixture
def barks() -> Barks:
    return Barks()


@pytest.fixture
def watchdog(barks: Barks) -> Iterator[Watchdog]:
    made = Watchdog(LIMIT, barks)
    yield made
    made.stop()


def test_a_helper_that_does_nothing_is_given_up_and_then_ended(
    watchdog: Watchdog, barks: Barks
) -> None:
    with Abort(watchdog=watchdog) as abort:
        watchdog.start()
        assert barks.came.wait(10)
        assert (abort.errnoval, abort.reason) == (errno.ETIMEDOUT, *barks.reasons)
    assert barks.reasons == ["the helper has done nothing for 0.4 s"]


def test_it_is_ended_before_there_is_anything_to_give_up(watchdog: Watchdog, barks: Barks) -> None:
    watchdog.start()
    assert barks.came.wait(10)


@pytest.mark.parametrize("sign", ["progress", "idle", "alive"])
def test_one_that_shows_signs_is_left_alone(watchdog: Watchdog, barks: Barks, sign: str) -> None:
    with Abort(watchdog=watchdog) as abort:
        watchdog.start()
        for _ in range(20):
            getattr(abort, sign)()
            assert not barks.came.wait(LIMIT / 8)
        assert not abort.requested


def test_one_whose_error_path_runs_is_not_ended(watchdog: Watchdog, barks: Barks) -> None:
    with Abort(watchdog=watchdog) as abort:
        watchdog.start()
        assert select.select([abort.fileno()], [], [], 10)[0]
        for _ in range(8):
            abort.alive()
            assert not barks.came.wait(LIMIT / 8)


@pytest.mark.parametrize(("stall", "answer", "limit"), [(60, 600, 660), (0, 600, 0), (60, 0, 0)])
def test_the_limit_is_longer_than_those_of_the_waits_for_others(
    stall: float, answer: float, limit: float
) -> None:
    assert limit_of(stall, answer) == limit


def test_one_that_fails_ends_the_helper(
    watchdog: Watchdog, barks: Barks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_seconds: float) -> bool:
        raise RuntimeError("a fault of its own")

    monkeypatch.setattr(watchdog._over, "wait", fail)
    watchdog.start()
    assert barks.came.wait(10)
    assert barks.reasons == ["the watchdog failed: RuntimeError('a fault of its own')"]


def test_without_a_limit_nobody_is_hung(barks: Barks) -> None:
    watchdog = Watchdog(0, barks)
    watchdog.start()
    assert not barks.came.wait(3 * LOOK)
    watchdog.stop()
