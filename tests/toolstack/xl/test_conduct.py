"""Running a handshake: an abort has its effect or none at all; it is never lost, nor reported
without effect."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.rules.handshake import Event, Receiver, receiver
from xen_save_helper.toolstack.xl.conduct import Action, run_handshake


class Played:
    """A receiver each of whose actions does nothing but what the test wants of one."""

    def __init__(self, gives_up: frozenset[Receiver], aborted_at_the_end_of: Receiver) -> None:
        self.machine = receiver()
        self.done: list[Receiver] = []
        self.failures: list[int] = []
        self._gives_up = gives_up
        self._aborted = aborted_at_the_end_of
        self.actions: dict[Receiver, Action] = {
            state: partial(self._act, state) for state in Receiver
        }

    async def _act(self, state: Receiver) -> Event:
        await asyncio.sleep(0)
        self.done.append(state)
        if state is self._aborted:
            assert self._task is not None
            self._task.cancel()
        return Event.OK

    async def _play(self) -> None:
        self._task = asyncio.current_task()
        await run_handshake(
            self.machine,
            self.actions,
            gives_up=self._gives_up.__contains__,
            failed=lambda failure: self.failures.append(failure.rc),
            trace=Trace("test"),
        )

    def play(self) -> None:
        asyncio.run(self._play())


@pytest.mark.parametrize("state", [Receiver.SAY_BANNER, Receiver.READ_CONFIG])
def test_an_abort_that_comes_as_an_action_ends_is_the_next_ones(state: Receiver) -> None:
    played = Played(frozenset({Receiver.SAY_BANNER, Receiver.READ_CONFIG, Receiver.EXAMINE}), state)
    played.play()
    assert played.machine.state is Receiver.NOT_STARTED
    assert Receiver.RUN_STREAM not in played.done
    assert played.failures == [Error.ABORTED]


def test_where_the_next_one_does_not_give_up_it_is_put_off_and_nothing_fails() -> None:
    played = Played(frozenset({Receiver.READ_GO}), Receiver.READ_GO)
    played.play()
    assert played.machine.state is Receiver.STARTED
    assert played.failures == []


def test_an_action_that_is_aborted_before_it_begins_says_what_that_means() -> None:
    async def waits() -> Event:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return Event.OK
        raise AssertionError

    played = Played(frozenset({Receiver.READ_CONFIG}), Receiver.SAY_BANNER)
    played.actions[Receiver.READ_CONFIG] = waits
    played.play()
    assert played.machine.state is Receiver.STARTED
