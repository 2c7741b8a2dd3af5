"""Limits for every wait, in seconds; time in which the waiting process itself is stopped does not
count. libxl waits forever in several of these places."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Self

from xen_save_helper.ipc_schema.channel.waits import LONGEST_LIMIT


@dataclass(frozen=True)
class Limits:
    """Limits in seconds; `--limit NAME=SECONDS` sets the one of that name.

    Raises TypeError and ValueError for anything but a number of seconds above 0.
    """

    helper_start: float = 10.0
    """From a helper's start to its `hello`."""
    stopped: float = 20.0
    """How long a helper, or a receiver on this machine, may be stopped by a signal; after that, it
    is continued (SIGCONT)."""
    callback: float = 120.0
    """How long the answer of an async callback may take."""
    suspend: float = 60.0
    """From the suspend request to the suspended guest."""
    abort: float = 10.0
    """From SIGTERM to SIGKILL, and from `complete` to the helper's exit."""
    stream_stall: float = 60.0
    """How long the other side of a stream may take (or send) nothing, and how long a helper may go
    on asking `precopy_policy` without sending a page."""
    admission: float = 3600.0
    """How long a receiver that has not sent a verdict may take to begin reading the stream: xl's
    waits for its global lock while another guest comes in."""
    handshake: float = 60.0
    """For each message of the migration handshake but those of `ready`."""
    ready: float = 180.0
    """For what the receiver says when it has done something with the guest (READY, the report, the
    sync message): meanwhile it starts the guest's devices, and libxl allows its device model, disks
    and networks this long."""

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
        """How long a received stream may bring nothing: the sender is silent while its guest
        acknowledges the request to suspend, and again while it suspends (libxl_dom_suspend.c).
        """
        return self.stream_stall + 2 * self.suspend

    @classmethod
    def parse(cls, settings: Iterable[str]) -> Self:
        """Limits from texts such as `suspend=5`. Raises ValueError, which says what is wanted."""
        names = [field.name for field in fields(cls)]
        changed: dict[str, float] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"limit {setting!r}: want NAME=SECONDS, as in suspend=5")
            if name not in names:
                raise ValueError(
                    f"limit {setting!r}: no such limit, want one of {', '.join(names)}"
                )
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
