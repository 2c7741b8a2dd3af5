"""What the helper is to do, its results, and its exit statuses.

No numpy here, and no dataclasses: the main program loads this first.
"""

from __future__ import annotations

from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

if TYPE_CHECKING:
    from xen_save_helper.helper.operation_control import OperationControl
    from xen_save_helper.ipc_schema.board import Board
    from xen_save_helper.ipc_schema.channel.listen import Listen

EXIT_DONE: Final = 0
"""`complete` was sent and answered, whatever libxc's result."""
EXIT_CONTROLLER_GONE: Final = 254
EXIT_FAILED: Final = 255
"""The helper's own errors: it was started wrongly, or the protocol was broken."""


class Job(NamedTuple):
    """The request, from `start` or libxl's command line, and the process's own settings."""

    request: HelperRequest
    stall_limit: float = 0.0
    """Seconds that stream and back channel may stand still when something is due, 0 for ever."""
    admission: float = 0.0
    """See `Abort`."""
    limits: PrecopyLimits | None = None
    """The precopy policy from the settings, for a controller that has none; None for
    libxenguest's."""
    device_model: str = ""
    """From the settings: see `helper.hypervisors.xen.restored_model`."""
    listen: Listen | None = None
    """From the settings: where a page server may listen, or that a restore may outlive its libxl
    (`helper.postcopy_link`)."""
    parent: int = -1
    """The descriptor of `settings.OUTLIVE`; -1 for none."""
    control: str = ""
    """From the settings: the directory of `helper.control_socket`."""
    board: Board | None = None
    """The controller's, or the one that `steered` shows; None for neither."""
    steered: OperationControl | None = None
    """What answers to other shells; None if that is left to a controller of ours."""
    events: str = ""
    """From the settings, for the processes that this one starts."""


class StreamCounts:
    """What a stream carried: the fields of the catalogue's `statistics`.

    `rounds` counts the rounds that sent any page, stop-and-copy included; `pages` counts pages with
    contents up to the postcopy transition, each as often as it was sent; `bytes` is the length of
    the stream; `postcopy_pages` counts the pages sent after the transition, and `postcopy_faults`
    those of them that a vCPU waited for.
    """

    __slots__ = ("bytes", "pages", "postcopy_faults", "postcopy_pages", "rounds")

    def __init__(self, rounds: int = 0, pages: int = 0, size: int = 0) -> None:
        self.rounds = rounds
        self.pages = pages
        self.bytes = size
        self.postcopy_pages = 0
        self.postcopy_faults = 0

    def fields(self) -> dict[str, int]:
        """By the message's field names."""
        return {name: getattr(self, name) for name in self.__slots__}


class PostcopyProgress(NamedTuple):
    """`pages` were left to postcopy, `left` of them are not there yet, for `faults` a vCPU had to
    wait. `waiting_since` is when the one began to wait that has waited longest (time.monotonic), if
    one waits and that is known."""

    pages: int
    left: int
    faults: int
    waiting_since: float | None = None


class RestoreResults:
    """The restored guest's rings (0 for none), and what the stream carried."""

    def __init__(
        self, store_gfn: int = 0, console_gfn: int = 0, statistics: StreamCounts | None = None
    ) -> None:
        self.store_gfn = store_gfn
        self.console_gfn = console_gfn
        self.statistics = statistics or StreamCounts()
