"""A progress line at the foot of a terminal: what an operation does, how far it is, and how long
that will take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from xen_save_helper.helper.standard_streams import Output
from xen_save_helper.toolstack.context import ProgressLine

_PAGE: Final = 4096
_UNITS: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
_WINDOW_SECONDS: Final = 5.0
"""Seconds over which the rate is measured."""
_MEASURABLE_SECONDS: Final = 0.5
_REPAINT_SECONDS: Final = 0.25
_SHORTEST_BAR: Final = 10
_LONGEST_BAR: Final = 30
_SHORTEST_TITLE: Final = 12

_LIBXC: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...]] = (
    (re.compile(r"Frames iteration (\d+)( of \d+)?"), lambda m: f"round {int(m[1]) + 1}"),
    (re.compile(r"Frames"), lambda _: "memory"),
    (re.compile(r"Final precopy iteration"), lambda _: "last round"),
    (re.compile(r"Frames verify"), lambda _: "verifying"),
)
"""libxc's names for what it does, in words for people; any other is shown as it is."""


def in_words(doing_what: str) -> str:
    """`round 3` for `Frames iteration 2`."""
    for pattern, words in _LIBXC:
        if match := pattern.fullmatch(doing_what):
            return words(match)
    return doing_what


def amount(done: float, total: float) -> str:
    """`41 MiB of 256`, in the unit of `total`, both in bytes."""
    size, unit = next(one for one in _UNITS if total >= one[0] or one[0] == 1)
    digits = 1 if total / size < 10 and size > 1 else 0
    return f"{done / size:.{digits}f} {unit} of {total / size:.{digits}f}"


def rate_of(bytes_per_second: float) -> str:
    """`212 MiB/s`."""
    size, unit = next(one for one in _UNITS if bytes_per_second >= one[0] or one[0] == 1)
    digits = 1 if bytes_per_second / size < 10 and size > 1 else 0
    return f"{bytes_per_second / size:.{digits}f} {unit}/s"


def clock(seconds: float) -> str:
    """`0:04`, `1:02:03`."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def shortened(text: str, columns: int) -> str:
    """`text` without its middle if it is longer than so many columns, at least 3."""
    if len(text) <= columns:
        return text
    head = (columns - 1) // 2
    return f"{text[: columns - 1 - head]}…{text[-head:]}"


class Progress:
    """The progress of an operation, as a line. There is one bar for the whole operation: the share
    of the guest's memory that has arrived. Each round of a live migration takes it back by what the
    guest has written meanwhile."""

    def __init__(self, title: str, now: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._now = now
        self._what = ""
        self._since = now()
        self._done = self._total = self._memory = 0
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, doing_what: str, done: int, total: int) -> None:
        """See `context.ProgressLine`."""
        now, what = self._now(), in_words(doing_what)
        if what.partition(":")[0] != self._what.partition(":")[0]:
            self._since = now
            self._seen.clear()
        self._what, self._done, self._total = what, done, total
        self._memory = max(self._memory, total)
        self._seen.append((now, done))
        while now - self._seen[0][0] > _WINDOW_SECONDS:
            self._seen.popleft()

    def line(self, columns: int) -> str:
        """The line, in at most `columns`: a long title loses its middle, then there is no bar."""
        text = ", ".join(self._parts())
        title = shortened(self._title, max(_SHORTEST_TITLE, columns - len(text) - 2))
        line = f"{title}: {text}" if text else title
        width = min(columns - len(line) - 3, _LONGEST_BAR)
        share = self.share
        if share is not None and width >= _SHORTEST_BAR:
            filled = int(width * share)
            line = f"{line} [{'=' * filled}{' ' * (width - filled)}]"
        return line[:columns]

    @property
    def doing(self) -> str:
        """What it does, in words; "" before the first report."""
        return self._what

    @property
    def share(self) -> float | None:
        """The part of the guest's memory that has arrived; None if it cannot be measured now."""
        return 1 - (self._total - self._done) / self._memory if self._total else None

    @property
    def rate(self) -> float | None:
        """Bytes a second; None if not known yet."""
        if not self._total:
            return None
        began, at = self._seen[0]
        passed, pages = self._seen[-1][0] - began, self._seen[-1][1] - at
        return pages * _PAGE / passed if passed >= _MEASURABLE_SECONDS and pages > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds that what it does will take at this rate."""
        rate = self.rate
        return None if rate is None else (self._total - self._done) * _PAGE / rate

    def _parts(self) -> Iterator[str]:
        if self._what:
            yield self._what
        if not self._total:
            if self._what and (waited := int(self._now() - self._since)):
                yield f"{waited} s"
            return
        yield amount(self._done * _PAGE, self._total * _PAGE)
        rate, left = self.rate, self.left
        if rate is not None and left is not None:
            yield rate_of(rate)
            yield f"{clock(left)} left"


@contextlib.contextmanager
def progress_line(title: str) -> Iterator[ProgressLine]:
    """Show progress on stderr while the context lasts, without ever waiting for the terminal."""
    progress = Progress(title)
    terminal = sys.stderr
    timer: asyncio.TimerHandle | None = None

    def paint() -> None:
        nonlocal timer
        if isinstance(terminal, Output):
            terminal.show_status(progress.line(_columns() - 1))
        timer = asyncio.get_running_loop().call_later(_REPAINT_SECONDS, paint)

    def update(doing_what: str, done: int, total: int) -> None:
        progress.update(doing_what, done, total)
        if timer is None:
            paint()

    try:
        yield update
    finally:
        if isinstance(terminal, Output):
            terminal.show_status("")


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
