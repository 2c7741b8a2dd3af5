"""The two ends of a postcopy restore, in any order: the domain's resumption and the stream's end.

libxl_create.c of the postcopy series (domcreate_postcopy_stream_done, domcreate_report_result):

| comes first      | then | when the other has come, the restore completes with      |
|------------------|------|----------------------------------------------------------|
| stream, rc 0     | wait | resumption's rc                                          |
| stream, rc not 0 | keep the rc; unless resumption has let the domain run already, it must not;
|                  |      the stream's rc                                             |
| resumption, rc 0 | wait | the stream's rc                                          |
| resumption, not 0| abort the stream | resumption's rc                              |
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AbortStream:
    """Give the stream up; its end is still reported."""

    rc: int


@dataclass(frozen=True)
class Complete:
    """Both ends have come: the restore ends with `rc`."""

    rc: int


RestoreAction = AbortStream | Complete


class RestoreJoin:
    """Event in, actions out; begins with the transition's success, when both are in progress."""

    def __init__(self) -> None:
        self._stream: int | None = None
        self._resume: int | None = None

    @property
    def may_unpause(self) -> bool:
        """Whether resumption may let the domain run: not where the stream failed before."""
        return not self._stream

    def stream_done(self, rc: int) -> tuple[RestoreAction, ...]:
        """Stream and helper have both stopped."""
        if self._stream is not None:
            raise RuntimeError("the stream of a postcopy restore ends twice")
        self._stream = rc
        if self._resume is None:
            return ()
        return (Complete(self._resume or rc),)

    def resume_done(self, rc: int) -> tuple[RestoreAction, ...]:
        """The domain runs (0), or it could not be let run."""
        if self._resume is not None:
            raise RuntimeError("the resumption of a postcopy restore ends twice")
        self._resume = rc
        if self._stream is None:
            return (AbortStream(rc),) if rc else ()
        return (Complete(self._stream or rc),)
