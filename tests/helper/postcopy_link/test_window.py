"""How much of a tunnel is on its way over links and to readers of all speeds."""

from __future__ import annotations

from collections import deque

import pytest

from xen_save_helper.helper.postcopy_link.window import LEAST, MOST, QUEUED_SECONDS, Window

FRAME = 1 << 16
SECONDS = 20.0


class Path:
    """There is always something to send. What is sent is read at `rate` bytes a second, and each
    word takes half a `round_trip`."""

    def __init__(self, rate: float, round_trip: float) -> None:
        self.rate, self.round_trip = rate, round_trip
        self.window = Window()
        self.now = 0.0
        self.read = 0
        self._sent = 0
        self._reader_free = 0.0
        self._under_way: deque[tuple[int, float]] = deque()
        self.waits: list[float] = []
        """How long each frame waits behind those before it."""

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            while self._sent - self.read < self.window.size:
                self._send()
            self.read, self.now = self._under_way.popleft()
            self.window.confirmed(self.read, self.now)

    def _send(self) -> None:
        self._sent += FRAME
        self.window.sent(self._sent, self.now)
        there = self.now + self.round_trip / 2
        self.waits.append(max(0.0, self._reader_free - there))
        self._reader_free = max(there, self._reader_free) + FRAME / self.rate
        self._under_way.append((self._sent, self._reader_free + self.round_trip / 2))


@pytest.mark.parametrize("round_trip", [0.0002, 0.01, 0.1])
@pytest.mark.parametrize("rate", [6e5, 1e7, 1e8, 1e9])
def test_it_keeps_the_reader_busy_and_no_more(rate: float, round_trip: float) -> None:
    path = Path(rate, round_trip)
    path.run(1.0)
    path.waits.clear()
    before = path.read
    path.run(SECONDS)
    # More than the largest window is never under way.
    reached = min(rate, MOST / (round_trip + FRAME / rate))
    assert path.read - before > 0.9 * reached * SECONDS
    assert max(path.waits) < max(LEAST / rate, 3 * QUEUED_SECONDS)


def test_a_reader_that_becomes_slow() -> None:
    path = Path(1e8, 0.01)
    path.run(5.0)
    assert path.window.size > LEAST
    path.rate = 6e5
    path.run(60.0)
    path.waits.clear()
    path.run(SECONDS)
    assert max(path.waits) <= LEAST / path.rate


def test_another_begins_where_one_has_ended() -> None:
    """What was confirmed before does not count as sent in one round trip."""
    window = Window(100 * MOST)
    window.sent(100 * MOST + FRAME, 1.0)
    window.confirmed(100 * MOST + FRAME, 1.1)
    assert window.size <= LEAST + FRAME
