"""What people see of an evacuation: the plan, a table while it lasts, and what came of it. It loads
rich, so it is imported only to show them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from xen_save_helper.toolstack.commands.display import binary_size, console_on_stdout, seconds
from xen_save_helper.toolstack.commands.evacuation_view import View
from xen_save_helper.toolstack.commands.progress import Progress, clock, rate_of, shortened
from xen_save_helper.toolstack.commands.tables import Cell, fitted
from xen_save_helper.toolstack.evacuation.outcome import EvacuationResult, Fate, GuestEnd

if TYPE_CHECKING:
    from xen_save_helper.toolstack.evacuation.plan import Guest, Move, Plan

_REPAINT_SECONDS: Final = 0.25
_WIDE: Final = 100
"""Columns from which a row has a bar."""
_BAR: Final = 20
_FIGURES: Final = 25
"""Columns of the figures: done, rate and left, and the gaps between all."""

_COLOURS: Final = {
    Fate.MOVED: "green",
    Fate.MOVED_BEFORE: "green",
    Fate.STAYS: "yellow",
    Fate.NOT_BEGUN: "yellow",
    Fate.NOT_HERE: "yellow",
    Fate.DIED: "red",
    Fate.LEFT_SUSPENDED: "red",
    Fate.UNDEFINED: "red",
}


def show_plan(plan: Plan, *, limited: bool) -> None:
    """Print a plan. `limited`: the bandwidth is, so that times can be told."""
    console = console_on_stdout()
    titles = ("Guest", "Memory", "To", *(["Expected"] if limited else []))
    rows = []
    for move in plan.moves:
        expected = [seconds(move.seconds)] if limited else []
        rows.append([move.guest.name, binary_size(move.guest.memory), move.place, *expected])
    if rows:
        console.print(fitted(console.width, titles, rows, free="To"))
    for stay in plan.stays:
        line = Text.assemble((f"{stay.guest.name} cannot move: ", "yellow"), stay.reason)
        console.print(line, overflow="fold")
    if not plan.moves and not plan.stays:
        console.print("no guests to move")
    rooms = plan.rooms()
    rows = []
    for place in plan.places:
        left = rooms.left(place.name)
        free = "no bound known" if place.free is None else binary_size(place.free)
        after = "-" if left is None else binary_size(left)
        rows.append([place.name, free, binary_size(rooms.taken(place.name)), after])
    console.print()
    titles = ("Destination", "Free", "Takes", "Left")
    console.print(fitted(console.width, titles, rows, free="Destination"))


def show_result(result: EvacuationResult) -> None:
    """Print what has become of each guest."""
    console = console_on_stdout()
    moved = len(result.having(Fate.MOVED, Fate.MOVED_BEFORE))
    if not result.guests:
        console.print("no guests to move")
        return
    whole = moved == len(result.guests)
    what = f"{moved} of {len(result.guests)} guests moved in {seconds(result.seconds)}"
    headline = f"evacuated: {what}" if whole else f"not evacuated: {what}"
    console.print(Text(headline, style="bold green" if whole else "bold yellow"))
    titles = ("Guest", "Memory", "What", "Where", "Took", "Stood still", "Sent")
    rows = [[*_cells(end)] for end in result.guests]
    console.print(fitted(console.width, titles, rows, free="Where", left=("What",)))
    for end in result.guests:
        for warning in end.result.warnings if end.result else ():
            line = Text(f"warning: {end.name}: {warning}", style="yellow")
            console.print(line, overflow="fold")


def _cells(end: GuestEnd) -> Iterator[Cell]:
    yield end.name
    yield "-" if end.memory is None else binary_size(end.memory)
    yield Text(end.fate.value, style=_COLOURS[end.fate])
    match end.fate:
        case Fate.MOVED | Fate.MOVED_BEFORE:
            yield end.destination or "-"
        case Fate.UNDEFINED:
            yield f"here or at {end.destination}"
        case Fate.DIED | Fate.NOT_HERE:
            yield "-"
        case _:
            yield "here"
    result = end.result
    yield "-" if result is None else seconds(result.total_seconds)
    yield "-" if result is None else seconds(result.downtime_seconds)
    yield "-" if result is None or result.bytes_sent is None else binary_size(result.bytes_sent)


class _Row(NamedTuple):
    guest: str
    to: str
    now: str
    style: str = ""
    figures: tuple[RenderableType, RenderableType, RenderableType, RenderableType] = ("",) * 4


class LiveTable(View):
    """A table at the foot of the terminal: the guests that are on their way, those that have
    failed, and, as far as there is room, those that wait and those that have moved."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._timer: asyncio.TimerHandle | None = None
        self._moves: dict[str, Move] = {}
        self._under_way: dict[str, tuple[str, Progress]] = {}
        self._ends: dict[str, GuestEnd] = {}
        self._since = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._console.print(Text(line), soft_wrap=True)

    def begins(self, plan: Plan) -> None:
        self._moves = {move.guest.name: move for move in plan.moves}
        self._since = time.monotonic()

    def began(self, guest: Guest, destination: str, bandwidth: int) -> None:
        self._under_way[guest.name] = destination, Progress(guest.name)
        if self._timer is None:
            self._live.start()
            self._paint()

    def progress(self, guest: Guest, doing_what: str, done: int, total: int) -> None:
        if guest.name in self._under_way:
            self._under_way[guest.name][1].update(doing_what, done, total)

    def refused(self, guest: Guest, destination: str, reason: str, following: str) -> None:
        self._under_way.pop(guest.name, None)
        self.say(f"{guest.name}: {destination}: {reason}; trying {following}")

    def ended(self, end: GuestEnd) -> None:
        self._under_way.pop(end.name, None)
        self._ends[end.name] = end
        super().ended(end)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._live.stop()

    def _paint(self) -> None:
        self._live.update(self.picture(), refresh=True)
        self._timer = asyncio.get_running_loop().call_later(_REPAINT_SECONDS, self._paint)

    def picture(self) -> Group:
        """The table as it is now, for the terminal's size."""
        wide = self._console.width >= _WIDE
        # What is left of the columns, but for the gaps and the last four.
        room = max(24, self._console.width - _FIGURES - wide * (_BAR + 1) - 1)
        now = room * 4 // 10
        lines = max(1, self._console.height - 4)
        rows = [row for _, row in zip(range(lines), self._rows(), strict=False)]
        # Names of guests are the longer ones: they have what the destinations leave.
        to = min(room * 3 // 10, max((len(row.to) for row in rows), default=0))
        name = room - now - to
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("Guest", no_wrap=True)
        table.add_column("To", no_wrap=True)
        # As wide as it ever is, so that the figures stay where they are.
        table.add_column("Now", no_wrap=True, overflow="ellipsis", width=now)
        table.add_column("Done", justify="right", min_width=5)
        if wide:
            table.add_column("", width=_BAR)
        table.add_column("Rate", justify="right", min_width=9)
        table.add_column("Left", justify="right", min_width=5)
        for row in rows:
            done, bar, rate, left = row.figures
            table.add_row(
                Text(shortened(row.guest, name)),
                Text(shortened(row.to, to)),
                Text(row.now, style=row.style),
                done,
                *([bar] if wide else []),
                rate,
                left,
            )
        return Group(Text(self._headline(), style="bold", no_wrap=True, overflow="ellipsis"), table)

    def _rows(self) -> Iterator[_Row]:
        for name, (destination, progress) in self._under_way.items():
            share, rate, left = progress.share, progress.rate, progress.left
            figures = (
                "" if share is None else f"{100 * share:.0f} %",
                "" if share is None else ProgressBar(total=1.0, completed=share, width=_BAR),
                "" if rate is None else rate_of(rate),
                "" if left is None else clock(left),
            )
            yield _Row(name, destination, progress.doing, figures=figures)
        last = reversed(self._ends.values())
        ends = sorted(last, key=lambda end: end.fate is Fate.MOVED)
        failed = [end for end in ends if end.fate is not Fate.MOVED]
        for end in failed:
            yield self._row_of_end(end)
        for move in self._moves.values():
            if move.guest.name not in self._under_way and move.guest.name not in self._ends:
                yield _Row(move.guest.name, move.place, "waits", "dim")
        for end in ends[len(failed) :]:
            yield self._row_of_end(end)

    @staticmethod
    def _row_of_end(end: GuestEnd) -> _Row:
        return _Row(end.name, end.destination or "-", end.fate.value, _COLOURS[end.fate])

    def _headline(self) -> str:
        fates = [end.fate for end in self._ends.values()]
        moved, of = fates.count(Fate.MOVED), len(self._moves)
        parts = [f"{moved} of {of} moved", f"{len(self._under_way)} on their way"]
        if failed := len(fates) - moved:
            parts.append(f"{failed} not moved")
        passed = time.monotonic() - self._since
        sizes = {name: move.guest.memory for name, move in self._moves.items()}
        done = sum(sizes.get(name, 0) for name in self._ends)
        done += sum(
            int(sizes.get(name, 0) * (progress.share or 0.0))
            for name, (_, progress) in self._under_way.items()
        )
        if done and passed > 1:
            parts.append(f"about {clock((sum(sizes.values()) - done) * passed / done)} left")
        return ", ".join(parts)
