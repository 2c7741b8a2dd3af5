"""The context of an operation, as libxl's `libxl_ctx`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec

from xen_save_helper.helper.hypervisors import SIMULATED, XEN
from xen_save_helper.ipc_schema.channel.helper_request import DEFAULT_ENGINE, Engine
from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures, XentoollogLevel
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.helpers.request import HelperProgram, OwnHelper
from xen_save_helper.toolstack.hosts import open_host
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.rules import arguments
from xen_save_helper.toolstack.seams import Seams

if TYPE_CHECKING:
    from xen_save_helper.toolstack.helpers.operation_control import OperationControl
    from xen_save_helper.toolstack.hosts.interface import Host

P = ParamSpec("P")

LogLine = Callable[[int, str, str], None]
"""(level, context, text): a line of the helper's or the toolstack's log; `level` is a
`XentoollogLevel`, `context` names its author (`libxl`, `xc`)."""

ProgressLine = Callable[[str, int, int], None]
"""(doing_what, done, total): progress of a part of the operation, in pages; `total` is 0 if it
cannot be measured. `doing_what` is libxc's name for that part, or one for people."""


OURS: Final = "xen-toolstack"
"""The context of our own log lines."""


def no_log(_level: int, _context: str, _text: str) -> None:
    """The default `log`, which does nothing."""


def no_progress(_doing_what: str, _done: int, _total: int) -> None:
    """The default `progress`, which does nothing."""


@dataclass(frozen=True)
class Context:
    """The context of an operation; `open` makes one from a URI. It holds the host, the URI by which
    the helper reaches it (`hypervisor`: `xen` or `sim:DIRECTORY`), time limits, listeners, the
    helper's program and its engine (None for the hypervisor's default), the places of faults
    (`seams`), and what a restore does with a guest that was offered CPU features which the host
    lacks.

    Raises TypeError and ValueError for invalid arguments. An exception from `log` or `progress`
    goes to the loop's exception handler; the operation goes on.
    """

    host: Host
    hypervisor: str
    trace: Trace = field(default_factory=partial(Trace, "controller"))
    limits: Limits = field(default_factory=Limits)
    log: LogLine = no_log
    progress: ProgressLine = no_progress
    program: HelperProgram = field(default_factory=OwnHelper)
    seams: Seams = field(default_factory=Seams)
    missing_cpu_features: MissingCpuFeatures = MissingCpuFeatures.REFUSE
    engine_choice: Engine | None = None
    control: OperationControl | None = None
    """What lets other shells see and steer this one operation; xl's operations have it."""

    def __post_init__(self) -> None:
        check_uri("hypervisor", self.hypervisor)
        arguments.instance("limits", self.limits, Limits)
        arguments.instance("missing_cpu_features", self.missing_cpu_features, MissingCpuFeatures)
        if self.engine_choice is not None:
            arguments.instance("engine", self.engine_choice, Engine)
        if self.engine_choice is Engine.LIBXENGUEST and self.hypervisor != XEN:
            raise ValueError(f"engine: {self.engine_choice} works on {XEN} alone")

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        limits: Limits | None = None,
        log: LogLine = no_log,
        progress: ProgressLine = no_progress,
        trace: Trace | None = None,
        program: HelperProgram | None = None,
        missing_cpu_features: MissingCpuFeatures = MissingCpuFeatures.REFUSE,
        engine: Engine | None = None,
    ) -> Context:
        """The context of the host that `uri` names: `xen` or `sim:DIRECTORY`.

        Raises TypeError and ValueError for invalid arguments, OSError if there is no such host or
        it cannot be used (`toolstack.hosts.open_host`).
        """
        check_uri("uri", uri)
        return cls(
            open_host(uri),
            uri,
            trace or Trace("controller"),
            Limits() if limits is None else limits,
            log,
            progress,
            program or OwnHelper(),
            missing_cpu_features=missing_cpu_features,
            engine_choice=engine,
        )

    def say(self, level: int, context: str, text: str) -> None:
        """Log a line, from the event loop; raises nothing."""
        _tell(self.log, level, context, text)

    def warn(self, text: str) -> None:
        """Log a line of our own that a person should see."""
        self.say(XentoollogLevel.WARN, OURS, text)

    def say_progress(self, doing_what: str, done: int, total: int) -> None:
        """Report progress, from the event loop; raises nothing."""
        _tell(self.progress, doing_what, done, total)

    @property
    def engine(self) -> Engine:
        """The engine that our helper is asked to use. On Xen it leaves PV domains to libxenguest in
        any case."""
        return self.engine_choice or DEFAULT_ENGINE


def check_uri(name: str, uri: str) -> None:
    """Raise TypeError or ValueError unless `uri` names a hypervisor."""
    if arguments.instance(name, uri, str) != XEN and not uri.startswith(SIMULATED):
        raise ValueError(f"{name}: unknown hypervisor {uri!r}, want {XEN} or {SIMULATED}DIRECTORY")


def _tell(listener: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    try:
        listener(*args, **kwargs)
    except Exception as error:
        # A broken terminal must not fail the operation.
        asyncio.get_running_loop().call_exception_handler(
            {"message": "a listener of the operation failed", "exception": error}
        )
