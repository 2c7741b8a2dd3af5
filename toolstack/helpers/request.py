"""The program that carries out a helper's request, and its result."""

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
"""The name of our helper as a command, in place of libxl's."""


@dataclass(frozen=True)
class Statistics:
    """The helper's counts of its stream: the fields of the catalogue's `statistics`."""

    rounds: int
    pages: int
    bytes: int
    postcopy_pages: int
    postcopy_faults: int


@dataclass(frozen=True)
class PageServer:
    """The process that keeps a saved guest's last pages, and sends them, or why there is none: the
    fields of the catalogue's `page_server`."""

    server: str
    pages: int
    refusal: str


@dataclass(frozen=True)
class HelperResult:
    """How a helper ended.

    `rc` is that of running it: 0, or the first failure's code. `retval` and `errnoval` are libxc's,
    and meaningful only if `completed`: then its work, error path included, is done. If not, the
    domain is as the helper left it (with log-dirty mode on, for example). `reason` is a line for
    people, "" on success; `why` goes with it.
    """

    rc: int
    retval: int
    errnoval: int
    reason: str
    statistics: Statistics | None
    completed: bool
    why: Why = SYSTEM
    page_server: PageServer | None = None


@dataclass(frozen=True)
class OwnHelper:
    """Our helper, over ZeroMQ. `command` replaces the program, for tests."""

    command: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The drop-in, for another toolstack to start. Raises a FileNotFoundError that says where
        we looked."""
        return own_program(DROP_IN)


@dataclass(frozen=True)
class PipeHelper:
    """A helper with libxl's pipe protocol: libxl's own C program, or ours in its place."""

    path: Path
    dialect: Dialect


OUR_HELPER = OwnHelper()
HelperProgram = OwnHelper | PipeHelper

Callbacks = Mapping[str, Callable[..., int | None]]
"""Handlers by catalogue name. They are called with the message's fields as keywords. A sync
message's returns the answer, an unanswered one's None. An async message's returns None, and the
answer is given to `async_callback_done`, which may be called from inside the handler."""
