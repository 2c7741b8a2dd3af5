"""The two ends of a postcopy restore, in any order: the domain's resumption and the stream's end.

libxl_create.c of the postcopy series (domcreate_postcopy_stream_done, domcreate_report_result). The
resumption goes step by step (`RESUMPTION`); an rc that is not 0 ends it, and so does a stream that
has failed before the point of no return: the domain must not run then.

The point of no return is the receiver's: from there on the guest may have run here, with memory
that no other host has. What holds for the sender holds for it, too: first it is written down, and
if it cannot be, the domain does not run.

| ends first       | then | when the other has ended, the restore completes with      |
|------------------|------|-----------------------------------------------------------|
| stream, rc 0     | wait | resumption's rc                                           |
| stream, rc not 0 | keep the rc                            | stream's rc             |
| resumption, rc 0 | wait                                   | stream's rc             |
| resumption, not 0| abort the stream                       | resumption's rc         |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.rules.stream import POINT_OF_NO_RETURN, PointOfNoReturn


@dataclass(frozen=True)
class RestoreDeviceModel:
    """Give the domain's device model its state; then `device_model_done`."""


@dataclass(frozen=True)
class Unpause:
    """Let the domain run; then `unpaused`."""


@dataclass(frozen=True)
class Resumed:
    """The resumption has ended: the domain runs (0), or could not be made to run."""

    rc: int


@dataclass(frozen=True)
class AbortStream:
    """Give the stream up; its end is still reported."""

    rc: int


@dataclass(frozen=True)
class RestoreDone:
    """Both have ended: the restore ends with `rc`."""

    rc: int


PostcopyAction = (
    RestoreDeviceModel | PointOfNoReturn | Unpause | Resumed | AbortStream | RestoreDone
)
Actions = tuple[PostcopyAction, ...]


class ResumeStage(Enum):
    """What the resumption waits for."""

    TRANSITION = "transition"
    DEVICE_MODEL = "device model"
    PROMISE = "promise"
    UNPAUSE = "unpause"
    NOTHING = "nothing"
    """It has ended."""


RESUMPTION: Final[Mapping[ResumeStage, tuple[PostcopyAction, ResumeStage]]] = {
    ResumeStage.TRANSITION: (RestoreDeviceModel(), ResumeStage.DEVICE_MODEL),
    ResumeStage.DEVICE_MODEL: (POINT_OF_NO_RETURN, ResumeStage.PROMISE),
    ResumeStage.PROMISE: (Unpause(), ResumeStage.UNPAUSE),
    ResumeStage.UNPAUSE: (Resumed(0), ResumeStage.NOTHING),
}
"""What is done when a stage's wait has ended well, and what is waited for then."""


class PostcopyJoin:
    """Event in, actions out; begins with the transition's success, when both are in progress."""

    def __init__(self) -> None:
        self.stage = ResumeStage.TRANSITION
        self._stream: int | None = None
        self._resume: int | None = None

    def transitioned(self) -> Actions:
        """The transition has been made, and libxc told so."""
        return self._resumption(ResumeStage.TRANSITION, 0)

    def device_model_done(self, rc: int) -> Actions:
        """The device model has its state (also if the domain has none)."""
        return self._resumption(ResumeStage.DEVICE_MODEL, rc or (Error.FAIL if self._stream else 0))

    def promised(self, rc: int) -> Actions:
        """The point of no return is written down, or (`rc`) cannot be."""
        return self._resumption(ResumeStage.PROMISE, rc)

    def unpaused(self, rc: int) -> Actions:
        """The domain runs (0), or could not be made to run."""
        return self._resumption(ResumeStage.UNPAUSE, rc)

    def stream_done(self, rc: int) -> Actions:
        """Stream and helper have both stopped."""
        if self._stream is not None:
            raise RuntimeError("the stream of a postcopy restore ends twice")
        self._stream = rc
        return () if self._resume is None else (RestoreDone(self._resume or rc),)

    def _resumption(self, stage: ResumeStage, rc: int) -> Actions:
        if stage is not self.stage:
            raise RuntimeError(
                f"the {stage.value} is reported, but {self.stage.value} is waited for"
            )
        action, self.stage = (Resumed(rc), ResumeStage.NOTHING) if rc else RESUMPTION[stage]
        if self.stage is not ResumeStage.NOTHING:
            return (action,)
        self._resume = rc
        if self._stream is not None:
            return (action, RestoreDone(self._stream or rc))
        return (action, AbortStream(rc)) if rc else (action,)
