"""The board: one page of memory on which a helper keeps its counters, and its controller what it
may change while the helper works.

Nobody is asked and no message is sent: the helper writes once a batch, whether anybody looks or
not, and reads what the controller has written at the same time. The controller makes the page, a
memfd that the helper inherits: `XEN_SAVE_HELPER_BOARD` is its descriptor. If another program starts
the helper for that controller, it is a path, below the controller's `/proc/PID/fd`. A helper
without a controller of ours has a board of its own, for its control socket.

The page is an array of words of 8 bytes, in the machine's byte order: both sides are on one
machine. A word is written whole, so no reader sees a half one; several of them need not be of the
same moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum

from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import CATALOGUE
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.phases import Phase, Stage

VARIABLE: Final = "XEN_SAVE_HELPER_BOARD"
SIZE: Final = 4096
_WORD: Final = 8
MAGIC: Final = 0x5853_4842_0000_0003
"""`XSHB`, and the version of the table below."""

UNKNOWN: Final = -1
AS_ASKED: Final = -1


class Word(IntEnum):
    """Places on the board; `WORDS` says what is there."""

    MAGIC = 0
    ENGINE = 1
    PHASE = 2
    CALLBACK = 3
    BYTES = 4
    PAGES = 5
    ROUNDS = 6
    ROUND_DONE = 7
    ROUND_TOTAL = 8
    TOTAL_PAGES = 9
    DIRTY_COUNT = 10
    DIRTY_RATE = 11
    ROUND_RATE = 12
    LAST_EXPECTED = 13
    LAST_TOOK = 14
    SUSPENDED_AT = 15
    POSTCOPY_TOTAL = 16
    POSTCOPY_LEFT = 17
    POSTCOPY_FAULTS = 18
    BLOCKTIME = 19
    BLOCKED_SINCE = 20
    BANDWIDTH = 32
    PAUSED_SINCE = 33
    MAX_DOWNTIME = 34
    PAUSED_BEFORE = 35


class WordKind(Enum):
    """The type of a word: the format of its `memoryview`."""

    INT = "q"
    REAL = "d"


class BoardWriter(Enum):
    HELPER = "helper"
    CONTROLLER = "controller"


class Row(NamedTuple):
    kind: WordKind
    writer: BoardWriter
    doc: str


def _int(doc: str) -> Row:
    return Row(WordKind.INT, BoardWriter.HELPER, doc)


def _real(doc: str) -> Row:
    return Row(WordKind.REAL, BoardWriter.HELPER, doc)


WORDS: Final[Mapping[Word, Row]] = {
    Word.MAGIC: Row(WordKind.INT, BoardWriter.CONTROLLER, "MAGIC, before the helper starts"),
    Word.ENGINE: _int("the engine at work: its place in ENGINES"),
    Word.PHASE: _int("the phase that it is in: its place in PHASES"),
    Word.CALLBACK: _int("the callback whose answer it waits for: its place in CALLBACKS"),
    Word.BYTES: _int("bytes of the libxc stream that were written or read"),
    Word.PAGES: _int("pages with contents that were sent or read, each as often as it was"),
    Word.ROUNDS: _int("rounds that have ended"),
    Word.ROUND_DONE: _int("pfns of this round that are done; of a restore, pages of the domain"),
    Word.ROUND_TOTAL: _int("pfns of this round; of a restore, pages that the domain is to have"),
    Word.TOTAL_PAGES: _int("pages of the domain"),
    Word.DIRTY_COUNT: _int("pages that were dirty when the bitmap was last read; -1 before"),
    Word.DIRTY_RATE: _real("pages a second that the guest made dirty before that; 0 if unknown"),
    Word.ROUND_RATE: _real("pages a second that the last round sent; 0 if unknown"),
    Word.LAST_EXPECTED: _real("seconds that the last round was expected to take; 0 if unknown"),
    Word.LAST_TOOK: _real("seconds that it took"),
    Word.SUSPENDED_AT: _real("when the guest was suspended (CLOCK_MONOTONIC); 0 if it is not"),
    Word.POSTCOPY_TOTAL: _int("pages that were left to postcopy"),
    Word.POSTCOPY_LEFT: _int("those of them that are still to be sent, or put in place"),
    Word.POSTCOPY_FAULTS: _int("those of them that a vCPU had to wait for"),
    Word.BLOCKTIME: _real("seconds in which at least one vCPU waited for a page, now aside"),
    Word.BLOCKED_SINCE: _real("since when one has been waiting (CLOCK_MONOTONIC); 0 if none is"),
    Word.BANDWIDTH: Row(
        WordKind.INT,
        BoardWriter.CONTROLLER,
        "bytes a second to send at most; 0 for no limit, -1 for what the request says",
    ),
    Word.PAUSED_SINCE: Row(
        WordKind.REAL,
        BoardWriter.CONTROLLER,
        "since when nothing but signs of life is to be sent (CLOCK_MONOTONIC); 0 if all is",
    ),
    Word.MAX_DOWNTIME: Row(
        WordKind.INT,
        BoardWriter.CONTROLLER,
        "milliseconds for hot pages ahead of postcopy; 0 for none, -1 for what the request says",
    ),
    Word.PAUSED_BEFORE: Row(
        WordKind.REAL, BoardWriter.CONTROLLER, "seconds in which sending was paused, now aside"
    ),
}

ENGINES: Final[tuple[Engine | None, ...]] = (None, *Engine)
PHASES: Final = tuple(
    dict.fromkeys(("", *(phase.value for phase in Phase), *(stage.value for stage in Stage)))
)
CALLBACKS: Final = ("", *CATALOGUE)
"""The first of each stands for none."""
_PHASE_PLACES: Final = {name: place for place, name in enumerate(PHASES)}
_CALLBACK_PLACES: Final = {name: place for place, name in enumerate(CALLBACKS)}


class Board:
    """A board in a writable `memory` of SIZE bytes, or in memory of its own. Its words are
    `ints[Word.…]` or `reals[Word.…]`, by their kind."""

    __slots__ = ("ints", "reals")

    def __init__(self, memory: memoryview | None = None) -> None:
        view = memoryview(bytearray(SIZE)) if memory is None else memory
        self.ints: memoryview = view.cast(WordKind.INT.value)
        self.reals: memoryview[float] = view.cast(WordKind.REAL.value)
        if not self.ints[Word.MAGIC]:
            self.ints[Word.MAGIC] = MAGIC
            self.ints[Word.DIRTY_COUNT] = UNKNOWN
            for word in (Word.BANDWIDTH, Word.MAX_DOWNTIME):
                self.ints[word] = AS_ASKED

    @property
    def is_ours(self) -> bool:
        """Whether it has this table's layout."""
        return bool(self.ints[Word.MAGIC] == MAGIC)

    @property
    def paused(self) -> bool:
        """Whether sending is."""
        return self.reals[Word.PAUSED_SINCE] != 0.0

    def pause(self, now: float) -> None:
        """`now` is CLOCK_MONOTONIC, in seconds, as below."""
        self.reals[Word.PAUSED_SINCE] = self.reals[Word.PAUSED_SINCE] or now

    def resume(self, now: float) -> None:
        """End a pause."""
        # In this order, whoever reads in between takes a little time off a round, and adds none.
        self.reals[Word.PAUSED_BEFORE] += now - self.reals[Word.PAUSED_SINCE]
        self.reals[Word.PAUSED_SINCE] = 0.0

    def sending_clock(self, now: float) -> float:
        """A clock, in seconds, that stands still while sending is paused, for rates."""
        return (self.reals[Word.PAUSED_SINCE] or now) - self.reals[Word.PAUSED_BEFORE]

    @property
    def engine(self) -> Engine | None:
        return ENGINES[self.ints[Word.ENGINE]]

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self.ints[Word.ENGINE] = ENGINES.index(engine)

    @property
    def phase(self) -> str:
        """Empty before the first."""
        return PHASES[self.ints[Word.PHASE]]

    @phase.setter
    def phase(self, name: str) -> None:
        self.ints[Word.PHASE] = _PHASE_PLACES.get(name, 0)

    @property
    def callback(self) -> str:
        """Empty if it waits for none."""
        return CALLBACKS[self.ints[Word.CALLBACK]]

    @callback.setter
    def callback(self, name: str) -> None:
        self.ints[Word.CALLBACK] = _CALLBACK_PLACES.get(name, 0)
