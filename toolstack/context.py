"""What every operation of the toolstack is given: libxl's `libxl_ctx`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from helper.hypervisors import XEN
from ipc_schema.trace import Trace
from toolstack.helper_request import LIBXENGUEST, OWN_ENGINE
from toolstack.limits import Limits
from toolstack.save_helper import HelperProgram, OwnHelper

if TYPE_CHECKING:
    from helper.hypervisors.interface import Host
    from toolstack.faults.controller_faults import ControllerFaults

LogLine = Callable[[int, str, str], None]
"""(level, context, text): a line of the helper's or the toolstack's log; `level` is a
`XentoollogLevel`, `context` names who speaks (`libxl`, `xc`)."""

ProgressLine = Callable[[str, int, int], None]
"""(doing_what, done, total): how far the helper is with what it does, in pages."""


def no_log(_level: int, _context: str, _text: str) -> None:
    """For a caller that does not listen."""


def no_progress(_doing_what: str, _done: int, _total: int) -> None:
    """For a caller that does not listen."""


@dataclass(frozen=True)
class Context:
    """A host, how the helper reaches it (`hypervisor`: `xen` or `sim:DIRECTORY`), how long anything
    may take, who hears of it, which helper does the work, and what faults strike ourselves."""

    host: Host
    hypervisor: str
    trace: Trace = field(default_factory=partial(Trace, "controller"))
    limits: Limits = field(default_factory=Limits)
    log: LogLine = no_log
    progress: ProgressLine = no_progress
    program: HelperProgram = field(default_factory=OwnHelper)
    faults: ControllerFaults | None = None

    @property
    def engine(self) -> str:
        """The engine of our helper that works on this hypervisor."""
        return LIBXENGUEST if self.hypervisor == XEN else OWN_ENGINE
