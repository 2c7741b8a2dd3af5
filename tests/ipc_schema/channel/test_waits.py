"""Which time counts towards a limit, and which does not."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import wait_for
from xen_save_helper.ipc_schema.channel.waits import Patience, is_stopped, stood_still

LIMITS = st.floats(0.01, 1e6)


@given(LIMITS)
def test_one_that_looks_in_time_waits_for_as_long_as_its_limit(limit: float) -> None:
    patience, now, looks = Patience(limit, 0.0), 0.0, 0
    while looks < 2000:
        now, looks = now + patience.wait, looks + 1
        if patience.look(now):
            assert now == pytest.approx(limit)
            return
    assert now < limit


@given(LIMITS, st.floats(0, 1e9), st.integers(0, 12))
def test_one_stop_ends_no_limit(limit: float, stop: float, looks: int) -> None:
    """However long it lasts, and whenever it happens."""
    patience, now = Patience(limit, 0.0), 0.0
    for _ in range(looks):
        now += patience.wait
        assert not patience.look(now)
    assert not patience.look(now + patience.wait + stop)


@given(LIMITS, st.lists(st.floats(0, 1e6), max_size=50))
def test_who_is_waited_for_may_stand_still_for_ever(limit: float, times: list[float]) -> None:
    patience, now = Patience(limit, 0.0), 0.0
    for seconds in times:
        now += seconds
        assert not patience.look(now, counts=False)


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_no_limit_is_never_over(times: list[float]) -> None:
    patience, now = Patience(0, 0.0), 0.0
    for seconds in times:
        now += seconds
        assert not patience.look(now)


def test_what_has_come_starts_it_anew() -> None:
    patience = Patience(1.6, 0.0)
    for tenths in range(1, 16):
        assert not patience.look(tenths / 10)
    patience.restart(1.5)
    assert not patience.look(1.6)


@pytest.mark.parametrize(("passed", "told"), [(0.25, 0), (1.0, 0), (1.5, 1.25), (15.25, 15)])
def test_a_late_look_is_told_where_it_is_worth_a_word(passed: float, told: float) -> None:
    assert stood_still(0.25, passed) == told


def test_a_process_that_is_stopped() -> None:
    def stat() -> bytes:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            return file.read()

    with subprocess.Popen(["sleep", "100"], executable="/bin/sleep") as process:
        try:
            assert not is_stopped(stat())
            os.kill(process.pid, signal.SIGSTOP)
            wait_for(lambda: is_stopped(stat()), "the stop")
        finally:
            process.kill()


@pytest.mark.parametrize("name", [b"T) T (", b"a (T) b", b""])
def test_the_name_of_a_process_is_not_its_state(name: bytes) -> None:
    assert not is_stopped(b"1 (" + name + b") S 1 1 1")
    assert is_stopped(b"1 (" + name + b") t 1 1 1")
