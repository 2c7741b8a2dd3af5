"""The faults that `xl` has to face, and what is right for each by libxl's own rules.

The rules are those of libxl_save_callout.c (`helper_stdout_readable`, `helper_exited`,
`helper_done`), of libxl_stream_write.c and libxl_stream_read.c, and of xl_migrate.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Right(Enum):
    """How the command has to end, by itself and soon."""

    FAILS = "fails"
    SUCCEEDS = "succeeds"


@dataclass(frozen=True)
class FaultCase:
    """`plan` is a value of XEN_SAVE_HELPER_FAULTS; `rule` says why `right` is right, `waits` why
    libxl waits, if it waits for ever."""

    plan: str
    right: Right
    rule: str

    @property
    def waits(self) -> str:
        return _WAITS.get(self.rule, "it has no limit for its helper")


def _fails(plan: str, rule: str) -> FaultCase:
    return FaultCase(plan, Right.FAILS, rule)


def _succeeds(plan: str, rule: str) -> FaultCase:
    return FaultCase(plan, Right.SUCCEEDS, rule)


_SIGNAL: Final = "the helper died by a signal: ERROR_FAIL"
_UNTOLD: Final = "the helper exited without telling complete: ERROR_FAIL"
_STATUS: Final = "an exit status that is not 0: ERROR_FAIL, whatever complete said"
_RESULTS: Final = "the helper exited without restore_results: ERROR_FAIL"
_LIBXC: Final = "libxc fails and tells so: ERROR_FAIL"
_STREAM_IN: Final = "a broken stream: libxc fails and tells so"
_STREAM_OUT: Final = "a stream that cannot be written: libxc fails and tells so"
_UNKNOWN: Final = "a message that is none: SIGKILL for the helper, ERROR_FAIL"
_SILENT: Final = "a helper that says nothing must not be waited for without a limit"
_SHORT: Final = "a short message: SIGKILL for the helper, ERROR_FAIL"
_CLOSED: Final = "end of file from a living helper: SIGKILL, ERROR_FAIL"
_TOLD: Final = "complete has been told, what comes after it does not count"
_TWICE: Final = "a second request while the first is at work: SIGKILL for the helper, ERROR_FAIL"
_LATE: Final = "late, but whole"

_WAITS: Final = {
    _UNKNOWN: "it drops the message, and the helper has no answer",
    _SHORT: "in a blocking read of the rest, from inside its event loop",
    _TWICE: "the second request is set up over the first, which is at work",
}
"""What libxl's sources do instead, by the rule that this breaks."""

SAVE: Final = (
    _fails("start=exit(0)", _UNTOLD),
    _fails("suspend:before-send=kill", _SIGNAL),
    _fails("suspend:after-answer=die(SEGV)", _SIGNAL),
    _fails("complete:before-send=exit(0)", _UNTOLD),
    _fails("exit=exit(3)", _STATUS),
    _fails("suspend:before-send=drop", _SILENT),
    _fails("suspend:before-send=garbage", _UNKNOWN),
    _fails("suspend:before-send=truncate", _SHORT),
    _fails("suspend:before-send=duplicate", _TWICE),
    _fails("suspend:after-send=hang-up", _CLOSED),
    _fails("suspend:before-answer=answer(0)", _LIBXC),
    _succeeds("complete:before-send=duplicate", _TOLD),
    _fails("stream@1000000=enospc", _STREAM_OUT),
    _fails("stream@1000000=stall", _SILENT),
)

RESTORE: Final = (
    _fails("first-byte=kill", _SIGNAL),
    _fails("stream@1000000=cut", _STREAM_IN),
    _fails("record.libxc.X86_CPUID_POLICY:read=flip(2)", _STREAM_IN),
    _fails("static_data_done:before-send=wrong-number", _UNKNOWN),
    _fails("static_data_done:before-answer=answer(-1)", _LIBXC),
    _succeeds("log:before-send=oversize", "a log line too long is worth no more than its loss"),
    _fails("restore_results:before-send=drop", _RESULTS),
    _succeeds("restore_results:before-send=duplicate", "the same told twice is told"),
    _fails("complete:before-send=drop", _SILENT),
    _fails("complete:after-answer=die(ABRT)", _SIGNAL),
    _succeeds("complete:before-send=stop(5)", _LATE),
)

MIGRATE: Final = (
    _fails("source/suspend:before-send=kill", _SIGNAL),
    _fails("source/suspend:after-answer=stop", _SILENT),
    _fails("source/suspend:before-send=signal(TERM)", "told to give up: libxc fails and tells so"),
    _fails("source/stream@1000000=reset", _STREAM_OUT),
    _fails("source/exit=exit(3)", _STATUS),
    _fails("destination/first-byte=kill", _SIGNAL),
    _fails("destination/record.libxc.PAGE_DATA:read=wrong-number", _STREAM_IN),
)


def some_of(cases: Sequence[FaultCase]) -> tuple[FaultCase, ...]:
    """The first case of each rule after which nobody waits for a limit."""
    waiting = {*_WAITS, _SILENT, _CLOSED, _LATE}
    found: dict[str, FaultCase] = {}
    for case in cases:
        if case.rule not in waiting:
            found.setdefault(case.rule, case)
    return tuple(found.values())
