"""Carries a plan out: several migrations at once, in one process and one loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from xen_save_helper.toolstack.cancellation import end_in_order, not_told, spawn, told
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.evacuation import record
from xen_save_helper.toolstack.evacuation.outcome import (
    FATES,
    EvacuationResult,
    Fate,
    GuestEnd,
    Try,
)
from xen_save_helper.toolstack.evacuation.shares import Shares
from xen_save_helper.toolstack.operations.settle import DEAD, GuestStateError
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.xl.migrate import migrate
from xen_save_helper.toolstack.xl.migrate_options import Destination, MigrateOptions
from xen_save_helper.toolstack.xl.outcome import MigrationResult

if TYPE_CHECKING:
    from xen_save_helper.toolstack.evacuation.plan import Guest, Move, Plan

STARTS: Final = 2 * (os.cpu_count() or 1)
"""Migrations that start at once, until their first page: each starts four interpreters, and none
must be taken for one that hangs because the others leave it no processor."""

_INTERRUPTED: Final = "interrupted"


@dataclass(frozen=True)
class EvacuationOptions:
    """How to carry a plan out. `migration` has the options of each guest's migration; its bandwidth
    is that of all together, which `weights` share out. At most `jobs` run at once, and at most
    `at_once` at one destination (None: as many as there are). `stop_on_failure`: none begins after
    one has failed.

    Raises ValueError for figures below 1 and weights that are not above 0.
    """

    migration: MigrateOptions = field(default_factory=MigrateOptions)
    jobs: int = 4
    at_once: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    stop_on_failure: bool = False

    def __post_init__(self) -> None:
        for name, number in (("jobs", self.jobs), ("at_once", self.at_once)):
            if number is not None and number < 1:
                raise ValueError(f"{name}: want 1 or more, not {number}")
        Shares(0, self.weights)


class Watcher:
    """Is told of an evacuation, from the event loop. Its methods do nothing; it must not raise."""

    def began(self, guest: Guest, destination: str, bandwidth: int) -> None:
        """A migration begins, with `bandwidth` bytes a second (0: no limit)."""

    def progress(self, guest: Guest, doing_what: str, done: int, total: int) -> None:
        """See `context.ProgressLine`."""

    def refused(self, guest: Guest, destination: str, reason: str, following: str) -> None:
        """A destination refused the guest before its first page; it tries the `following` one."""

    def ended(self, end: GuestEnd) -> None:
        """All is over for a guest."""


Steer = Callable[[str, int], object]
"""(guest, bytes a second): changes the bandwidth of a running migration."""


async def evacuate(
    ctx: Context,
    plan: Plan,
    destinations: Mapping[str, Destination],
    options: EvacuationOptions,
    *,
    watcher: Watcher | None = None,
    steer: Steer | None = None,
    on_end: Callable[[EvacuationResult], object] = not_told,
) -> EvacuationResult:
    """Carry `plan` out; `destinations` are those of its places, by name.

    A guest that a destination refuses before its first page tries the others at which it may fit. A
    guest whose migration fails stays, and the others go on, unless `options.stop_on_failure`.

    A cancellation begins no further migration, and reaches each that runs (see `xl.migrate`): the
    first lets one go on that is past the point of no return. Then `on_end` is called with the
    result, and the cancellation is raised.

    Without `steer` a migration keeps the bandwidth that it begins with: what one that ends leaves
    goes to the next that begins. With it, all are given their fair share whenever one begins or
    ends.
    """
    return await end_in_order(
        _Evacuation(ctx, plan, destinations, options, watcher or Watcher(), steer).run(), on_end
    )


class _Turn:
    """A guest's turn: its move, which may change, and the destinations that refused it."""

    def __init__(self, move: Move) -> None:
        self.guest = move.guest
        self.place = move.place
        self.tried: list[Try] = []

    def end(self, fate: Fate, reason: str, result: MigrationResult | None = None) -> GuestEnd:
        guest, tried = self.guest, tuple(self.tried)
        return GuestEnd(guest.name, guest.memory, self.place, fate, reason, tried, result)


class _Evacuation:
    def __init__(
        self,
        ctx: Context,
        plan: Plan,
        destinations: Mapping[str, Destination],
        options: EvacuationOptions,
        watcher: Watcher,
        steer: Steer | None,
    ) -> None:
        self._ctx = ctx
        self._plan = plan
        self._destinations = destinations
        self._options = options
        self._watcher = watcher
        self._steer = steer
        self._rooms = plan.rooms()
        self._shares = Shares(
            options.migration.bandwidth, options.weights, adjustable=steer is not None
        )
        self._waiting = [_Turn(move) for move in plan.moves]
        self._running: dict[str, tuple[_Turn, asyncio.Task[GuestEnd | None]]] = {}
        self._starting: set[str] = set()
        self._ends: dict[str, GuestEnd] = {}
        self._wake = asyncio.Event()
        self._stopped = False
        self._interrupted = False

    async def run(self) -> EvacuationResult:
        began = time.monotonic()
        for stay in self._plan.stays:
            self._end(GuestEnd(stay.guest.name, stay.guest.memory, None, Fate.STAYS, stay.reason))
        while True:
            self._begin_what_may()
            if not self._running:
                break
            try:
                await self._wake.wait()
            except asyncio.CancelledError:
                self._interrupt()
            self._wake.clear()
        why = _INTERRUPTED if self._interrupted else "another guest has failed"
        for turn in self._waiting:
            self._end(turn.end(Fate.NOT_BEGUN, why))
        order = [move.guest.name for move in self._plan.moves]
        order += [stay.guest.name for stay in self._plan.stays]
        ends = tuple(self._ends[name] for name in order)
        return EvacuationResult(ends, time.monotonic() - began, self._interrupted)

    def _interrupt(self) -> None:
        self._interrupted = self._stopped = True
        for _, task in self._running.values():
            task.cancel()

    # -- who begins -----------------------------------------------------------------------------

    def _begin_what_may(self) -> None:
        while (turn := self._next()) is not None:
            self._waiting.remove(turn)
            self._begin(turn)

    def _next(self) -> _Turn | None:
        """The first that may begin now; None if none may."""
        free = self._options.jobs - len(self._running)
        if self._stopped or free <= 0 or len(self._starting) >= STARTS:
            return None
        return next((one for one in self._waiting if self._slots(one.place) > 0), None)

    def _slots(self, place: str) -> float:
        """How many more migrations may go to a destination now."""
        if self._options.at_once is None:
            return float("inf")
        return self._options.at_once - sum(
            turn.place == place for turn, _ in self._running.values()
        )

    def _soon(self) -> list[str]:
        """Those that wait and would begin now but for the time that starting takes."""
        soon: list[_Turn] = []
        for turn in self._waiting:
            if len(self._running) + len(soon) >= self._options.jobs:
                break
            if self._slots(turn.place) > sum(one.place == turn.place for one in soon):
                soon.append(turn)
        return [turn.guest.name for turn in soon]

    def _begin(self, turn: _Turn) -> None:
        name = turn.guest.name
        self._starting.add(name)
        task = spawn(self._carry_out(turn))
        self._running[name] = turn, task
        bandwidth = self._shares.begin(name, self._soon())
        self._steer_all()
        self._watcher.began(turn.guest, turn.place, bandwidth)
        task.add_done_callback(partial(self._over, turn))

    def _steer_all(self) -> None:
        if self._steer is not None:
            for name, share in self._shares.held.items():
                self._steer(name, share)

    # -- one guest ------------------------------------------------------------------------------

    async def _carry_out(self, turn: _Turn) -> GuestEnd | None:
        """Migrate the guest. Returns None if it is to try another destination."""
        guest = turn.guest
        options = replace(self._options.migration, bandwidth=self._shares.held.get(guest.name, 0))
        ctx = replace(
            self._ctx,
            log=partial(self._log, guest.name),
            progress=partial(self._progress, guest),
        )
        destination = self._destinations[turn.place]
        try:
            result = await told(partial(migrate, ctx, guest.domid, destination, options))
        except GuestStateError as error:
            fate = Fate.DIED if error.state in DEAD else Fate.STAYS
            return turn.end(fate, message_of(error))
        except ProcessLookupError as error:
            return turn.end(Fate.NOT_HERE, message_of(error))
        except (OSError, EOFError, ValueError) as error:
            return turn.end(Fate.STAYS, message_of(error))
        except asyncio.CancelledError:
            return turn.end(Fate.NOT_BEGUN, _INTERRUPTED)
        fate = FATES[result.outcome]
        if fate is Fate.MOVED:
            self._record(turn)
        refused = fate is Fate.STAYS and result.bytes_sent == 0
        if refused and not self._stopped and self._tries_another(turn, result.reason):
            return None
        return turn.end(fate, result.reason, result)

    def _tries_another(self, turn: _Turn, reason: str) -> bool:
        """Whether there is another destination at which the guest may fit; it has the guest's room
        from here on."""
        tried = [*turn.tried, Try(turn.place, reason)]
        following = self._rooms.roomiest(turn.guest, (one.destination for one in tried))
        if following is None:
            return False
        self._watcher.refused(turn.guest, turn.place, reason, following)
        self._rooms.give_back(turn.guest, turn.place)
        self._rooms.take(turn.guest, following)
        turn.tried, turn.place = tried, following
        return True

    def _end(self, end: GuestEnd) -> None:
        self._ends[end.name] = end
        self._watcher.ended(end)

    def _record(self, turn: _Turn) -> None:
        try:
            record.add(self._ctx.host.state_dir, turn.guest.name, turn.place)
        except OSError as error:
            self._ctx.warn(f"{turn.guest.name}: not noted as moved: {message_of(error)}")

    def _over(self, turn: _Turn, task: asyncio.Task[GuestEnd | None]) -> None:
        name = turn.guest.name
        del self._running[name]
        self._starting.discard(name)
        self._shares.end(name)
        self._steer_all()
        self._wake.set()
        if task.cancelled():
            # Before its first step.
            end: GuestEnd | None = turn.end(Fate.NOT_BEGUN, _INTERRUPTED)
        elif (bug := task.exception()) is not None:
            what = f"the migration of {name} failed by a bug"
            task.get_loop().call_exception_handler({"message": what, "exception": bug})
            end = turn.end(Fate.UNDEFINED, f"{what}: {bug!r}")
        else:
            end = task.result()
        if end is None:
            self._waiting.insert(0, turn)
            return
        self._end(end)
        if end.fate is Fate.MOVED:
            return
        self._stopped |= self._options.stop_on_failure
        if end.fate in {Fate.STAYS, Fate.NOT_HERE, Fate.DIED}:
            self._rooms.give_back(turn.guest, turn.place)

    def _log(self, name: str, level: int, context: str, text: str) -> None:
        self._ctx.log(level, context, f"{name}: {text}")

    def _progress(self, guest: Guest, doing_what: str, done: int, total: int) -> None:
        if total and guest.name in self._starting:
            self._starting.discard(guest.name)
            self._wake.set()
        self._watcher.progress(guest, doing_what, done, total)
