"""How long each wait may last, in time in which the process that waits has run. libxl waits for
ever in several of these places."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Self

from xen_save_helper.ipc_schema.channel.waits import LONGEST_LIMIT


@dataclass(frozen=True)
class Limits:
    """Limits in seconds; `--limit NAME=SECONDS` sets one by its name here.

    Raises TypeError and ValueError for one that is no number of seconds above 0.
    """

    helper_start: float = 10.0
    """From a helper's start to its `hello`."""
    stopped: float = 20.0
    """For how long a helper, or a receiver on this machine, may be stopped by a signal: it is let
    go on then."""
    callback: float = 120.0
    """For how long an async callback may stay without its answer."""
    suspend: float = 60.0
    """From the suspend request to the suspended guest."""
    abort: float = 10.0
    """From SIGTERM to SIGKILL, and from `complete` to the helper's exit."""
    stream_stall: float = 60.0
    """For how long the other side of a stream may take (or send) nothing, and for how long a helper
    may ask how precopy goes on without sending a page."""
    admission: float = 3600.0
    """For how long a receiver that has said nothing of itself may leave the stream unread before it
    has begun with it: xl's waits for its global lock while another guest comes in."""
    handshake: float = 60.0
    """For each message of the migration handshake but READY."""
    ready: float = 180.0
    """From the stream's end to READY: the receiver starts the guest's devices meanwhile, for which
    libxl gives its device model, disks and networks so long."""

    def __post_init__(self) -> None:
        for one in fields(self):
            seconds = getattr(self, one.name)
            if not isinstance(seconds, int | float) or isinstance(seconds, bool):
                raise TypeError(f"{one.name}: want a number of seconds, not {seconds!r}")
            if not 0 < seconds <= LONGEST_LIMIT:
                raise ValueError(
                    f"{one.name}: {seconds!r} is not a number of seconds above 0, and at most "
                    f"{LONGEST_LIMIT:.0f}"
                )

    @property
    def sender_silence(self) -> float:
        """For how long a stream that is received may bring nothing: its sender is silent while its
        guest acknowledges a request to suspend, and again while it suspends (libxl_dom_suspend.c).
        """
        return self.stream_stall + 2 * self.suspend

    @classmethod
    def parse(cls, settings: Iterable[str]) -> Self:
        """Limits from texts like `suspend=5`. Raises ValueError that says what would be right."""
        names = [field.name for field in fields(cls)]
        changed: dict[str, float] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"limit {setting!r}: want NAME=SECONDS, as in suspend=5")
            if name not in names:
                raise ValueError(f"limit {setting!r}: no such limit; there are {', '.join(names)}")
            try:
                seconds = float(text)
            except ValueError:
                seconds = math.nan
            if not 0 < seconds <= LONGEST_LIMIT:
                raise ValueError(
                    f"limit {setting!r}: {text!r} is not a number of seconds above 0, "
                    f"and at most {LONGEST_LIMIT:.0f}"
                )
            changed[name] = seconds
        return replace(cls(), **changed)
