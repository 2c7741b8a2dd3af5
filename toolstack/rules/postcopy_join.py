"""The join of a postcopy restore's two ends, in any order: the domain resumed, the stream ended.

libxl_create.c of the postcopy series (domcreate_postcopy_stream_done, domcreate_report_result). The
resumption goes step by step (`RESUMPTION`). An rc that is not 0 ends it, and so does a stream that
fails before the point of no return: the domain must not run then.

The point of no return is the receiver's: from there on the guest may have run here, with memory
that no other host has. As at the sender, that is recorded first, and if it cannot be, the domain
does not run.

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
    """Restore the domain's device model, then report `device_model_done`."""


@dataclass(frozen=True)
class Unpause:
    """Let the domain run, then report `unpaused`."""


@dataclass(frozen=True)
class Resumed:
    """The resumption has ended: the domain runs (0), or could not be made to run."""

    rc: int


@dataclass(frozen=True)
class AbortStream:
    """Abort the stream; its end is still reported."""

    rc: int


@dataclass(frozen=True)
class RestoreDone:
    """Both have ended; the restore ends with `rc`."""

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
"""What to do when a stage's wait has ended well, and the stage after it."""


class PostcopyJoin:
    """Event in, actions out. It begins when the transition has succeeded and neither has ended."""

    def __init__(self) -> None:
        self.stage = ResumeStage.TRANSITION
        self._stream: int | None = None
        self._resume: int | None = None

    def transitioned(self) -> Actions:
        """The transition is made, and libxc has its answer."""
        return self._resumption(ResumeStage.TRANSITION, 0)

    def device_model_done(self, rc: int) -> Actions:
        """The device model is restored, or the domain has none."""
        return self._resumption(ResumeStage.DEVICE_MODEL, rc or (Error.FAIL if self._stream else 0))

    def promised(self, rc: int) -> Actions:
        """The point of no return is recorded, or (`rc`) cannot be."""
        return self._resumption(ResumeStage.PROMISE, rc)

    def unpaused(self, rc: int) -> Actions:
        """The domain runs (0), or could not be made to run."""
        return self._resumption(ResumeStage.UNPAUSE, rc)

    def stream_done(self, rc: int) -> Actions:
        """Stream and helper have both stopped."""
        if self._stream is not None:
            raise RuntimeError("the stream of a postcopy restore ended twice")
        self._stream = rc
        return () if self._resume is None else (RestoreDone(self._resume or rc),)

    def _resumption(self, stage: ResumeStage, rc: int) -> Actions:
        if stage is not self.stage:
            raise RuntimeError(f"{stage.value} reported while waiting for {self.stage.value}")
        action, self.stage = (Resumed(rc), ResumeStage.NOTHING) if rc else RESUMPTION[stage]
        if self.stage is not ResumeStage.NOTHING:
            return (action,)
        self._resume = rc
        if self._stream is not None:
            return (action, RestoreDone(self._stream or rc))
        return (action, AbortStream(rc)) if rc else (action,)
