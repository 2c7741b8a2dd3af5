"""What is answered to those who ask a running operation (`ipc_schema.control`): its state, and what
may still be changed about it. The same rules for our controller and for the drop-in.

It reads and writes the board, and the precopy policy's limits, and traces what was changed; no
other I/O.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from xen_save_helper.ipc_schema.board import AS_ASKED, Board, Word
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import INTEGER_RANGES, Kind, PrecopyPolicy
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits, PrecopyRounds
from xen_save_helper.ipc_schema.control import PARAMETERS, SENDING, Ask, Identity
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.operation_status import (
    PAGE_SIZE,
    WAITS_FOR,
    MigrationStatus,
    OperationStatus,
    downtime_of,
    known,
    milliseconds,
    remaining_pages,
    status_of,
)
from xen_save_helper.ipc_schema.trace import Trace

_FIELDS: Final[Mapping[Ask, tuple[str, ...]]] = {Ask.SET: PARAMETERS, Ask.SWITCH: ("to",)}
_SHOWN: Final = 40
"""Characters of a wrong name that are repeated."""
_SAMPLES: Final = 6
"""Seconds over which the rate is measured, with one `look` a second."""
_STILL: Final = 2.0
"""Seconds without a byte after which the operation waits for the other side."""
_LONGEST: Final = INTEGER_RANGES[Kind.LONG][1]
"""The most that a word of the board takes."""
_ENDED: Final = "precopy has ended"
_ONCE: Final = "it is the sender that decides: ask at the source"
_WAYS: Final = {
    "postcopy": PrecopyPolicy.POSTCOPY,
    "stop-and-copy": PrecopyPolicy.STOP_AND_COPY,
}


class Steering:
    """Of one operation. `clock` is CLOCK_MONOTONIC, in seconds; `steered` is called with what was
    changed.

    The owner keeps these up to date: `live`, `rounds`, `postcopy` (whether it may end in
    one) and `by_link` (it does, over a link of its own) once they are known; `no_rounds` and
    `no_bandwidth` say why the helper follows neither limits nor a bandwidth, if it does not;
    `bandwidth` is what was asked for at the start; `step` says what is done while there is no
    phase. `cancel` ends the operation, unless `too_late` says why that cannot be.
    """

    def __init__(
        self,
        board: Board,
        identity: Identity,
        trace: Trace,
        *,
        cancel: Callable[[], object],
        too_late: Callable[[], str] = lambda: "",
        step: Callable[[], str] = lambda: "",
        steered: Callable[[Ask, Mapping[str, object]], object] = lambda _ask, _fields: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.board = board
        self.identity = identity
        self.saving = identity.role in SENDING
        self.live = False
        self.postcopy = False
        self.by_link = False
        self._rounds: PrecopyRounds | None = None
        self.no_rounds = "its stream has not begun"
        self.bandwidth = 0
        self.no_bandwidth = ""
        self._clock = clock
        self._cancel = cancel
        self._too_late = too_late
        self._step = step
        self._trace = trace
        self._steered = steered
        self._cancelled = False
        self._began = clock()
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self._moved = (self._began, 0)

    @property
    def rounds(self) -> PrecopyRounds | None:
        return self._rounds

    @rounds.setter
    def rounds(self, rounds: PrecopyRounds | None) -> None:
        self._rounds = rounds
        if rounds is not None:
            # It may have been paused before they began.
            rounds.held = self.board.paused

    def sending_clock(self) -> float:
        """A clock that stands still while sending is paused, for rates."""
        return self.board.sending_clock(self._clock())

    def has_domid(self, domid: int) -> None:
        """The domain of a restore has been made."""
        self.identity = self.identity._replace(domid=domid)

    def look(self) -> None:
        """To be called each second."""
        now, size = self._clock(), self.board.ints[Word.BYTES]
        self._samples.append((now, size))
        if size != self._moved[1]:
            self._moved = (now, size)

    def answer(self, ask: Ask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The response. Raises OSError for what cannot be (any more), ValueError for a request that
        is wrong; nothing is changed then."""
        if ask is Ask.STATUS:
            return self.status()._asdict()
        fields = {name: request[name] for name in request if name != "ask"}
        if unknown := fields.keys() - set(_FIELDS.get(ask, ())):
            wants = ", ".join(_FIELDS.get(ask, ())) or "nothing besides"
            raise ValueError(f"unknown parameter {min(unknown)[:_SHOWN]!r}: want {wants}")
        if self._cancelled and ask is not Ask.CANCEL:
            raise OSError("it is being cancelled")
        match ask:
            case Ask.CANCEL:
                response = self._ask_to_end()
            case Ask.SET:
                response = self._set(fields)
            case Ask.SWITCH:
                response = self._switch(request.get("to"))
            case Ask.PAUSE_SENDING:
                response = self._pause()
            case Ask.RESUME_SENDING:
                response = self._resume()
            case _:
                raise OSError(f"{ask.value} is for page servers and pagers")
        self._trace.event("control", ask=ask.value, fields=fields)
        self._steered(ask, fields)
        return response

    # What can be changed

    def _ask_to_end(self) -> Mapping[str, Any]:
        if self._cancelled:
            # Once: what is cancelled again may give up more than it should.
            return {}
        if reason := self._too_late():
            raise OSError(reason)
        self._cancelled = True
        self._cancel()
        return {}

    def _set(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        given = dict(fields)
        if not given:
            raise ValueError(f"want one or more of {', '.join(PARAMETERS)}")
        if {"max_rounds", "abort_after"} <= given.keys():
            raise ValueError("max_rounds or abort_after: precopy ends in one way only")
        if not self.saving:
            raise OSError(_ONCE)
        bandwidth = given.pop("bandwidth", None)
        if bandwidth is not None:
            _check_number("bandwidth", bandwidth)
            if reason := self._why_no_bandwidth():
                raise OSError(reason)
        limits = None
        if given:
            rounds = self._open_rounds()
            limits = _changed(rounds.limits, given)
            rounds.limits = limits
            if "max_downtime" in given:
                self.board.ints[Word.MAX_DOWNTIME] = min(limits.max_downtime_ms or 0, _LONGEST)
        if bandwidth is not None:
            self.board.ints[Word.BANDWIDTH] = bandwidth
        return self._parameters()

    def _switch(self, to: object) -> Mapping[str, Any]:
        way = _WAYS.get(to) if isinstance(to, str) else None
        if way is None:
            raise ValueError(f"to {to!r}: want {' or '.join(_WAYS)}")
        if not self.saving:
            raise OSError(_ONCE)
        rounds = self._open_rounds()
        if self.by_link:
            if way is PrecopyPolicy.STOP_AND_COPY:
                raise OSError("what is left after precopy goes over a link of its own (postcopy)")
            # That is how a helper with a page server understands any end of precopy.
            way = PrecopyPolicy.STOP_AND_COPY
        elif way is PrecopyPolicy.POSTCOPY and not self.postcopy:
            raise OSError("postcopy was not asked for when it began (migrate --postcopy)")
        rounds.wanted = way
        return {}

    def _pause(self) -> Mapping[str, Any]:
        if not self.saving:
            raise OSError(_ONCE)
        if reason := self._why_no_bandwidth():
            raise OSError(reason)
        if self.live and status_of(self.board) is not MigrationStatus.POSTCOPY_ACTIVE:
            try:
                self._open_rounds()
            except OSError as error:
                raise OSError(f"{error}: the guest would only stand still for longer") from None
        self.board.pause(self._clock())
        self._hold()
        return {}

    def _resume(self) -> Mapping[str, Any]:
        if not self.board.paused:
            raise OSError("sending is not paused")
        self.board.resume(self._clock())
        self._hold()
        return {}

    def _hold(self) -> None:
        """Signs of life go on, and with them a round may end: precopy must not."""
        if self.rounds is not None:
            self.rounds.held = self.board.paused

    def _open_rounds(self) -> PrecopyRounds:
        """The rounds, as long as they can be steered. Raises OSError."""
        if self.rounds is None:
            raise OSError(self.no_rounds)
        if self.rounds.ended or self.board.reals[Word.SUSPENDED_AT]:
            raise OSError(_ENDED)
        return self.rounds

    def _why_no_bandwidth(self) -> str:
        engine = self.board.engine
        if engine is Engine.LIBXENGUEST:
            return "libxenguest, which sends this guest's memory, has no bandwidth limit"
        return self.no_bandwidth if engine is None else ""

    def _parameters(self) -> dict[str, int | None]:
        limits = self.rounds.limits if self.rounds is not None else None
        bandwidth = self.board.ints[Word.BANDWIDTH]
        return {
            "bandwidth": self.bandwidth if bandwidth == AS_ASKED else bandwidth,
            "max_downtime": limits.max_downtime_ms if limits else None,
            "max_rounds": limits.max_rounds if limits and limits.abort_after is None else None,
            "abort_after": limits.abort_after if limits else None,
            "dirty_threshold": limits.dirty_threshold if limits else None,
        }

    # What can be seen

    def status(self) -> OperationStatus:
        board, identity, now = self.board, self.identity, self._clock()
        ints, reals = board.ints, board.reals
        rate = self._rate(now)
        left = remaining_pages(board)
        round_rate = reals[Word.ROUND_RATE] * PAGE_SIZE
        blocked, since = reals[Word.BLOCKTIME], reals[Word.BLOCKED_SINCE]
        wait = now - since if since else 0.0
        suspended_at = reals[Word.SUSPENDED_AT]
        status = MigrationStatus.CANCELLING if self._cancelled else status_of(board)
        over = status in {MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.CANCELLING}
        parameters = self._parameters()
        postcopy = ints[Word.POSTCOPY_TOTAL] > 0
        return OperationStatus(
            role=identity.role,
            domid=identity.domid,
            domain=identity.domain,
            pid=identity.pid,
            status=status,
            phase=board.phase or self._step(),
            engine=board.engine.value if board.engine else "",
            total_time=milliseconds(now - self._began),
            transferred=ints[Word.BYTES],
            remaining=None if left is None else left * PAGE_SIZE,
            total=ints[Word.TOTAL_PAGES] * PAGE_SIZE or None,
            normal=ints[Word.PAGES],
            page_size=PAGE_SIZE,
            rounds=ints[Word.ROUNDS],
            dirty_sync_count=self._round(),
            round_pages=ints[Word.ROUND_DONE],
            round_total=ints[Word.ROUND_TOTAL],
            dirty_pages=ints[Word.DIRTY_COUNT],
            dirty_pages_rate=known(reals[Word.DIRTY_RATE]),
            memory_bps=rate,
            time_remaining=None
            if left is None or not rate
            else milliseconds(left * PAGE_SIZE / rate),
            expected_downtime=None
            if not self.live or suspended_at
            else downtime_of(board, round_rate or rate),
            downtime=milliseconds(now - suspended_at) if suspended_at and not over else None,
            last_round_expected=_or_none(reals[Word.LAST_EXPECTED], reals[Word.LAST_EXPECTED]),
            last_round_time=_or_none(reals[Word.LAST_EXPECTED], reals[Word.LAST_TOOK]),
            postcopy=self.postcopy or postcopy,
            postcopy_total=ints[Word.POSTCOPY_TOTAL],
            postcopy_remaining=ints[Word.POSTCOPY_LEFT],
            postcopy_requests=ints[Word.POSTCOPY_FAULTS],
            postcopy_blocktime=milliseconds(blocked + wait)
            if postcopy and not self.saving
            else None,
            longest_wait=milliseconds(wait) if postcopy and not self.saving else None,
            paused=board.paused,
            waits_for=self._waits_for(now),
            max_bandwidth=parameters["bandwidth"] or None,
            downtime_limit=parameters["max_downtime"],
            max_rounds=parameters["max_rounds"],
            abort_after=parameters["abort_after"],
            dirty_threshold=parameters["dirty_threshold"],
        )

    def _round(self) -> int:
        """The round that is under way or, between two, the last: from 1 on."""
        ints = self.board.ints
        return ints[Word.ROUNDS] + (ints[Word.ROUND_DONE] < ints[Word.ROUND_TOTAL])

    def _rate(self, now: float) -> float | None:
        """Bytes a second, lately; None before it can be told."""
        then, before = self._samples[0] if self._samples else (self._began, 0)
        seconds = now - then
        return round((self.board.ints[Word.BYTES] - before) / seconds, 1) if seconds > 0 else None

    def _waits_for(self, now: float) -> str:
        board = self.board
        if board.paused:
            return "you: sending is paused (resume-sending)"
        if waits := WAITS_FOR.get(board.callback):
            return waits
        if not board.phase:
            return ""
        size = board.ints[Word.BYTES]
        if board.callback or size != self._moved[1] or now - self._moved[0] < _STILL:
            return ""
        seconds = f"for {now - self._moved[0]:.0f} s"
        if self.saving:
            return f"the other side: it has taken nothing {seconds}"
        return f"the other side: nothing has come {seconds}"


def _or_none(measured: float, seconds: float) -> int | None:
    return milliseconds(seconds) if measured else None


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LONGEST:
        raise ValueError(f"{name} {value!r}: want a whole number, 0 or more")


def _changed(limits: PrecopyLimits, given: Mapping[str, Any]) -> PrecopyLimits:
    """Raises ValueError for a bad figure."""
    fields = {"max_downtime": "max_downtime_ms"}
    changed = limits._asdict() | {fields.get(name, name): given[name] for name in given}
    if "max_rounds" in given:
        changed["abort_after"] = None
    try:
        return PrecopyLimits(**changed)
    except TypeError as error:
        raise ValueError(str(error)) from None
