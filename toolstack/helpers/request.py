"""By which program a helper's request is done, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xen_save_helper.helper.hypervisors.own_programs import own_program
from xen_save_helper.ipc_schema.causes import SYSTEM, Why
from xen_save_helper.ipc_schema.channel.messages import (
    Dialect,
)

DROP_IN: Final = "xen-save-helper"
"""Our helper as a command, in place of libxl's."""


@dataclass(frozen=True)
class Statistics:
    """What the stream carried, as the helper counted it: the fields of the catalogue's
    `statistics`."""

    rounds: int
    pages: int
    bytes: int
    postcopy_pages: int
    postcopy_faults: int


@dataclass(frozen=True)
class HelperResult:
    """How a helper ended.

    `rc` is of running it (0, or the first failure's code), `retval` and `errnoval` are libxc's and
    mean something only where `completed` is true: then its work, error path included, came to its
    end. Where `completed` is false the domain is as the helper left it (log-dirty on, for one).
    `reason` is a line for people, empty on success; `why` goes with it.
    """

    rc: int
    retval: int
    errnoval: int
    reason: str
    statistics: Statistics | None
    completed: bool
    why: Why = SYSTEM


@dataclass(frozen=True)
class OwnHelper:
    """Our helper, over ZeroMQ. `command` replaces the program, for tests."""

    command: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The drop-in, for another toolstack to start. Raises FileNotFoundError that says where it
        was looked for."""
        return own_program(DROP_IN)


@dataclass(frozen=True)
class PipeHelper:
    """A helper that speaks libxl's pipe protocol: libxl's own C program, or ours in its place."""

    path: Path
    dialect: Dialect


OUR_HELPER = OwnHelper()
HelperProgram = OwnHelper | PipeHelper

Callbacks = Mapping[str, Callable[..., int | None]]
"""By catalogue name. Handlers of sync and unanswered messages are called with the fields as
keywords and return the answer (or None); those of async messages return None, and the answer is
given to `async_callback_done`, also from inside the handler."""
