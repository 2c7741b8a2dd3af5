"""Saves of simulated guests: what the stream carries, and that log-dirty mode ends with it."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import HostFactory
from tests.helper.engine.running import log_dirty, migration, save, save_job, saving
from xen_save_helper.helper.engine.precopy import simple_precopy_policy
from xen_save_helper.helper.engine.save_phases import NEXT, Outcome
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour
from xen_save_helper.helper.job import Job
from xen_save_helper.ipc_schema.board import Board, Word
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy, StreamType
from xen_save_helper.ipc_schema.streams.phases import Phase
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

pytestmark = pytest.mark.usefixtures("no_leaks")

MEMORY = 8 << 20
CONTINUE, STOP, POSTCOPY, ABORT = 0, 1, 2, -1


def drained(work: Callable[[int], Any]) -> tuple[Any, bytearray]:
    """Call `work` with a socket whose other end is read: its result, and all that was read."""
    near, far = socket.socketpair()
    got = bytearray()

    def drain() -> None:
        while data := far.recv(1 << 20):
            got.extend(data)

    thread = threading.Thread(target=drain)
    with far:
        try:
            with near:
                thread.start()
                value = work(near.fileno())
        finally:
            thread.join()
    return value, got


def saved(host: SimulatedHost, domid: int, job: Job, **answers: Any) -> tuple[Any, Any, bytearray]:
    controller = saving(host, domid, **answers)
    statistics, stream = drained(lambda fd: save(host, domid, fd, controller=controller, job=job))
    return statistics, controller, stream


@pytest.mark.parametrize("kind", ["pvh", "hvm"])
@pytest.mark.parametrize("workload", ["idle", "sequential", "random", "write-heavy"])
@pytest.mark.parametrize("live", [False, True])
def test_a_guest_goes_over_whole(
    host_factory: HostFactory, workload: str, live: bool, kind: str
) -> None:
    with migration(host_factory, workload, MEMORY, type=kind) as guest:
        guest.receive()
        sent, controller = guest.send(save_job(live=live))
        results = guest.received()
        assert results.statistics.pages == sent.pages >= MEMORY // 4096
        assert results.statistics.bytes == sent.bytes
        assert results.store_gfn
        assert [call["enable"] for call in controller.called("switch_qemu_logdirty")] == [1, 0]
        assert not log_dirty(guest.source, guest.domid)
        guest.run_at_target()
        report = guest.target.verify(guest.new, 30)
        assert report.state is GuestState.RUNNING
        assert report.memory_ok


def test_the_default_policy_ends_after_five_rounds_or_with_few_dirty_pages() -> None:
    assert simple_precopy_policy(0, 0, -1) is PrecopyPolicy.CONTINUE_PRECOPY
    assert simple_precopy_policy(1, 9000, 50) is PrecopyPolicy.CONTINUE_PRECOPY
    assert simple_precopy_policy(1, 9000, 49) is PrecopyPolicy.STOP_AND_COPY
    assert simple_precopy_policy(5, 9000, 5000) is PrecopyPolicy.STOP_AND_COPY


def test_without_a_policy_libxenguests_own_rules(host: SimulatedHost) -> None:
    domid = host.create_guest("guest", MEMORY, "write-heavy")
    # Slow enough for the guest to write more than 50 pages in each round.
    statistics, _, _ = saved(host, domid, save_job(live=True, bandwidth=40_000_000))
    assert statistics.rounds == 6, "five rounds, and the last one of the suspended guest"


def test_the_policy_is_asked_before_every_batch_and_at_each_rounds_end(
    host: SimulatedHost,
) -> None:
    domid = host.create_guest("guest", MEMORY, "random")

    def policy(iteration: int, total_written: int, dirty_count: int) -> int:
        return STOP if iteration == 2 else CONTINUE

    with open_on_host(host.directory, domid) as domain:
        p2m_size = domain.maximum_gpfn() + 1
    _, controller, _ = saved(host, domid, save_job(live=True), precopy_policy=policy)
    asked = [
        (stats["iteration"], stats["total_written"], stats["dirty_count"])
        for stats in controller.called("precopy_policy")
    ]
    first_round = [stats for stats in asked if stats[0] == 0]
    assert [stats[1] for stats in first_round] == [1024 * n for n in range(len(first_round))]
    assert len(first_round) == -(-p2m_size // 1024)
    assert {stats[2] for stats in first_round} == {-1}
    first_of_second = next(stats for stats in asked if stats[0] == 1)
    assert first_of_second[2] >= 0, "at a round's end the new dirty count is known"
    assert asked[-1][0] == 2
    assert asked[-1][2] >= 0


def test_a_pause_in_a_round_does_not_count_for_its_rate(host: SimulatedHost) -> None:
    domid = host.create_guest("guest", MEMORY, "idle")
    board = Board()
    paused: list[float] = []

    def policy(iteration: int, total_written: int, dirty_count: int) -> int:
        if not paused and total_written:
            board.pause(time.monotonic())
            threading.Event().wait(0.5)
            board.resume(time.monotonic())
            paused.append(board.reals[Word.PAUSED_BEFORE])
        if not iteration:
            return CONTINUE
        took = time.monotonic() - began
        assert 0 < board.reals[Word.LAST_TOOK] <= took - paused[0]
        assert board.reals[Word.ROUND_RATE] >= MEMORY // 4096 / (took - paused[0])
        return STOP

    controller = saving(host, domid, precopy_policy=policy)
    began = time.monotonic()
    drained(
        lambda fd: save(
            host, domid, fd, controller=controller, job=save_job(live=True), board=board
        )
    )
    assert paused


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_a_round_that_is_left_early_defers_its_rest(host_factory: HostFactory, turn: int) -> None:
    with migration(host_factory, "random", MEMORY) as guest:
        guest.receive()
        asked = []

        def policy(**stats: int) -> int:
            asked.append(stats)
            return STOP if len(asked) > turn else CONTINUE

        sent, _ = guest.send(save_job(live=True), precopy_policy=policy)
        assert len(asked) == turn + 1
        assert sent.pages >= MEMORY // 4096
        assert sent.rounds == (1 if turn == 0 else 2), "one that sent nothing is none"
        guest.received()
        guest.run_at_target()
        assert guest.target.verify(guest.new, 30).memory_ok


@pytest.mark.parametrize("turn", [0, 1, 3, 6])
def test_the_policy_can_abort_at_any_time(host: SimulatedHost, turn: int) -> None:
    domid = host.create_guest("guest", MEMORY, "random")
    asked = []

    def policy(**stats: int) -> int:
        asked.append(stats)
        return ABORT if len(asked) > turn else CONTINUE

    with pytest.raises(OSError, match="asked for an abort") as raised:
        saved(host, domid, save_job(live=True), precopy_policy=policy)
    assert raised.value.errno == errno.ECANCELED
    assert not log_dirty(host, domid)
    assert host.verify(domid, 30).state is GuestState.RUNNING


@pytest.mark.parametrize(
    ("job", "answers", "problem", "code"),
    [
        (save_job(live=True), {"precopy_policy": 7}, "answered 7", errno.EINVAL),
        (save_job(live=True), {"precopy_policy": POSTCOPY}, "postcopy", errno.EOPNOTSUPP),
        (
            save_job(live=True, postcopy=True),
            {"precopy_policy": POSTCOPY},
            "no back channel",
            errno.EOPNOTSUPP,
        ),
        (save_job(live=True), {"suspend": 0}, "was not suspended", errno.EIO),
        (save_job(), {"suspend": 1}, "has not been suspended: it runs", errno.EIO),
        (save_job(), {"switch_qemu_logdirty": -1}, "log-dirty", errno.EIO),
        (save_job(stream_type=StreamType.REMUS), {}, "REMUS", errno.EOPNOTSUPP),
        (save_job(stream_type=StreamType.COLO), {}, "COLO", errno.EOPNOTSUPP),
    ],
)
def test_callbacks_that_fail(
    host: SimulatedHost,
    job: Job,
    answers: dict[str, int],
    problem: str,
    code: int,
) -> None:
    domid = host.create_guest("guest", MEMORY, "random")
    with pytest.raises(OSError, match=problem) as raised:
        saved(host, domid, job, **answers)
    assert raised.value.errno == code
    assert not log_dirty(host, domid)
    assert host.verify(domid, 30).state is GuestState.RUNNING


def test_a_guest_that_dies_when_it_is_to_suspend(host: SimulatedHost) -> None:
    domid = host.create_guest("guest", MEMORY, "random", behaviour=Behaviour.DIE)
    with pytest.raises(OSError, match="suspended"):
        saved(host, domid, save_job(live=True))


def test_log_dirty_that_was_left_on_is_no_obstacle(host: SimulatedHost) -> None:
    domid = host.create_guest("guest", MEMORY, "random")
    with open_on_host(host.directory, domid) as left:
        left.logdirty_enable()
    saved(host, domid, save_job(live=True))
    assert not log_dirty(host, domid)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_receiver_that_goes_away(host: SimulatedHost, live: bool, seed: int) -> None:
    domid = host.create_guest("guest", MEMORY, "random")
    near, far = socket.socketpair()
    left = random.Random(seed).randrange(MEMORY)

    def drain() -> None:
        nonlocal left
        while left > 0:
            left -= len(far.recv(min(left, 1 << 16)))
        far.close()

    thread = threading.Thread(target=drain)
    with near, far:
        thread.start()
        with pytest.raises(OSError, match="write at offset 0x") as raised:
            save(host, domid, near.fileno(), job=save_job(live=live))
        thread.join()
    assert raised.value.errno in (errno.EPIPE, errno.ECONNRESET)
    assert not log_dirty(host, domid)
    host.resume(domid)
    assert host.verify(domid, 30).state is GuestState.RUNNING


def test_a_full_disk(host: SimulatedHost) -> None:
    domid = host.create_guest("guest", MEMORY, "idle")
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left") as raised:
            save(host, domid, fd)
    finally:
        os.close(fd)
    assert raised.value.errno == errno.ENOSPC


def test_a_stream_that_nobody_reads(host: SimulatedHost) -> None:
    domid = host.create_guest("guest", MEMORY, "random")
    near, far = socket.socketpair()
    with near, far, pytest.raises(OSError, match="stands still") as raised:
        save(host, domid, near.fileno(), job=save_job(live=True), stall_limit=0.2)
    assert raised.value.errno == errno.ETIMEDOUT
    assert not log_dirty(host, domid)


def test_debug_sends_all_again_to_be_compared(host_factory: HostFactory) -> None:
    with migration(host_factory, "random", MEMORY) as guest:
        guest.receive()
        sent, _ = guest.send(save_job(live=True, debug=True))
        assert sent.pages >= 2 * (MEMORY // 4096)
        assert guest.received().statistics.pages >= MEMORY // 4096
        guest.run_at_target()
        assert guest.target.verify(guest.new, 30).memory_ok


def test_a_guest_that_gives_memory_back_meanwhile(host: SimulatedHost) -> None:
    domid = host.create_guest("guest", MEMORY, "idle")
    asked = []

    def policy(**stats: int) -> int:
        asked.append(stats)
        if len(asked) == 2:
            host.balloon(domid, 600)
        return STOP if stats["iteration"] else CONTINUE

    statistics, _, _ = saved(host, domid, save_job(live=True), precopy_policy=policy)
    assert statistics.pages


def test_the_phases_lead_to_the_end_from_everywhere() -> None:
    reached = {Phase.FINISHED}
    while more := {phase for (phase, _), then in NEXT.items() if then in reached} - reached:
        reached |= more
    assert reached == set(Phase)
    assert not [phase for phase, _ in NEXT if phase is Phase.FINISHED]
    assert {outcome for _, outcome in NEXT} == set(Outcome)


def test_progress_reaches_its_end(host: SimulatedHost) -> None:
    domid = host.create_guest("guest", MEMORY, "idle")
    _, controller, _ = saved(host, domid, save_job())
    (last,) = [fields for name, fields in controller.told if name == "progress"][-1:]
    assert last["done"] == last["total"]
    assert "Domain now suspended" in controller.logged()
