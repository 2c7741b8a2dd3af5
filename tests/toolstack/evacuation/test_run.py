"""The library's evacuation: who begins when, with what bandwidth, and how it is cancelled."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from tests.toolstack.stage import Hosts
from tests.toolstack.two_hosts import Side, run
from xen_save_helper.toolstack.evacuation.outcome import EvacuationResult, Fate, GuestEnd
from xen_save_helper.toolstack.evacuation.plan import Guest, Plan, make_plan
from xen_save_helper.toolstack.evacuation.run import EvacuationOptions, Watcher, evacuate
from xen_save_helper.toolstack.evacuation.survey import look_at_destination, look_at_guests
from xen_save_helper.toolstack.xl.migrate_options import HostDestination, MigrateOptions
from xen_save_helper.toolstack.xl.outcome import ExitCode

pytestmark = pytest.mark.usefixtures("no_leaks")


@dataclass
class Notes(Watcher):
    """What was told, in order; `first_page` is set when a first page is sent."""

    told: list[str] = field(default_factory=list)
    bandwidths: list[int] = field(default_factory=list)
    first_page: asyncio.Event = field(default_factory=asyncio.Event)

    def began(self, guest: Guest, destination: str, bandwidth: int) -> None:
        self.told.append(f"{guest.name} begins")
        self.bandwidths.append(bandwidth)

    def progress(self, guest: Guest, doing_what: str, done: int, total: int) -> None:
        if total:
            self.first_page.set()

    def ended(self, end: GuestEnd) -> None:
        self.told.append(f"{end.name} {end.fate}")


def planned(hosts: Hosts, number: int) -> tuple[Plan, dict[str, HostDestination]]:
    for index in range(number):
        hosts.guest(f"g{index}", megabytes=2)
    destination = HostDestination(hosts.destination, hosts.at_destination)
    guests = look_at_guests(hosts.at_source, hosts.at_source.domains())
    place = look_at_destination(destination, hosts.at_source, guests, postcopy=False)
    return make_plan(guests, [place]), {place.name: destination}


def test_one_at_a_time_where_a_destination_takes_no_more(hosts: Hosts) -> None:
    plan, destinations = planned(hosts, 2)
    notes = Notes()
    options = EvacuationOptions(jobs=4, at_once=1)
    result = run(evacuate(Side(hosts.at_source).ctx, plan, destinations, options, watcher=notes))
    assert result.exit_code is ExitCode.SUCCESS
    assert notes.told == ["g0 begins", "g0 moved", "g1 begins", "g1 moved"]


def test_bandwidth_that_can_be_changed_is_shared_out_anew(hosts: Hosts) -> None:
    plan, destinations = planned(hosts, 2)
    notes, steered = Notes(), list[tuple[str, int]]()
    options = EvacuationOptions(MigrateOptions(bandwidth=64 << 20), weights={"g1": 3.0})
    ctx = Side(hosts.at_source).ctx
    work = evacuate(
        ctx, plan, destinations, options,
        watcher=notes, steer=lambda name, share: steered.append((name, share)),
    )  # fmt: skip
    assert run(work).exit_code is ExitCode.SUCCESS
    assert notes.bandwidths == [64 << 20, 48 << 20]
    assert steered[:3] == [("g0", 64 << 20), ("g0", 16 << 20), ("g1", 48 << 20)]
    assert steered[3] in {("g0", 64 << 20), ("g1", 64 << 20)}


def test_a_cancelled_evacuation_tells_what_is_where_and_is_cancelled(hosts: Hosts) -> None:
    plan, destinations = planned(hosts, 2)
    ended: list[EvacuationResult] = []

    async def cancelled() -> None:
        notes = Notes()
        options = EvacuationOptions(MigrateOptions(bandwidth=1 << 20), jobs=1)
        task = asyncio.ensure_future(
            evacuate(
                Side(hosts.at_source).ctx, plan, destinations, options,
                watcher=notes, on_end=ended.append,
            )
        )  # fmt: skip
        await notes.first_page.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancelled())
    (result,) = ended
    assert result.interrupted
    assert [end.fate for end in result.guests] == [Fate.STAYS, Fate.NOT_BEGUN]
    assert result.exit_code is ExitCode.FAILED
    assert hosts.states(hosts.at_source) == {"g0": "running", "g1": "running"}
    assert hosts.states(hosts.at_destination) == {}


def test_the_exit_code_is_that_of_the_guest_that_fared_worst() -> None:
    def code(*fates: Fate) -> int:
        ends = [GuestEnd(str(index), None, None, fate) for index, fate in enumerate(fates)]
        return EvacuationResult(ends, 0.0).exit_code

    assert code() == code(Fate.MOVED, Fate.MOVED_BEFORE) == 0
    assert code(Fate.MOVED, Fate.STAYS) == code(Fate.NOT_BEGUN) == code(Fate.NOT_HERE) == 1
    assert code(Fate.STAYS, Fate.DIED) == 5
    assert code(Fate.DIED, Fate.LEFT_SUSPENDED) == 3
    assert code(Fate.LEFT_SUSPENDED, Fate.UNDEFINED, Fate.MOVED) == 4


@pytest.mark.parametrize("wrong", [{"jobs": 0}, {"at_once": 0}, {"weights": {"g": 0.0}}])
def test_options_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="want"):
        EvacuationOptions(**wrong)  # type: ignore[arg-type]
