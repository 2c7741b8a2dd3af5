"""The state of a running save, restore or migration, as the ask `status` of `ipc_schema.control`
answers it, and how it is computed from the board.

Where QEMU's `query-migrate` (MigrationInfo) or libvirt's `virDomainGetJobStats` have a figure, the
field has its name, with `_` for `-`:

| field | unit | QEMU | libvirt |
|---|---|---|---|
| `status` | | `status` | |
| `total_time` | ms | `total-time` | `time_elapsed` |
| `transferred` | bytes | `ram.transferred` | `data_processed` |
| `remaining` | bytes | `ram.remaining` | `memory_remaining` |
| `total` | bytes | `ram.total` | `memory_total` |
| `normal` | pages | `ram.normal` | `memory_normal` |
| `page_size` | bytes | `ram.page-size` | `memory_page_size` |
| `dirty_sync_count` | rounds | `ram.dirty-sync-count` | `memory_iteration` |
| `dirty_pages_rate` | pages a second | `ram.dirty-pages-rate` | `memory_dirty_rate` |
| `memory_bps` | bytes a second | (`ram.mbps` is in megabits) | `memory_bps` |
| `time_remaining` | ms | | `time_remaining` |
| `expected_downtime` | ms | `expected-downtime` | |
| `downtime` | ms so far | `downtime` | `downtime` |
| `postcopy_requests` | pages | `ram.postcopy-requests` | `memory_postcopy_reqs` |
| `postcopy_blocktime` | ms | `postcopy-blocktime` | |
| `max_bandwidth` | bytes a second | parameter `max-bandwidth` | |
| `downtime_limit` | ms | parameter `downtime-limit` | |

QEMU's blocktime counts while all vCPUs wait, ours while any does.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from xen_save_helper.ipc_schema.board import Board, Word
from xen_save_helper.ipc_schema.channel.precopy_rule import PAGE_BYTES
from xen_save_helper.ipc_schema.control import Role
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.phases import Phase, Stage

PAGE_SIZE: Final = 4096


class MigrationStatus(StrEnum):
    """Those of QEMU's enum that there are here."""

    SETUP = "setup"
    """Before the stream."""
    ACTIVE = "active"
    """The guest runs, or is saved, and its memory is on its way."""
    DEVICE = "device"
    """It is suspended; its last pages and its state are, or what follows the stream."""
    POSTCOPY_ACTIVE = "postcopy-active"
    """It may run at the destination."""
    CANCELLING = "cancelling"


_AFTER_TRANSITION: Final = frozenset(
    phase.value for phase in (Phase.POSTCOPY_PAGES, Phase.POSTCOPY_DRAIN, Stage.POSTCOPY_PAGES)
)

WAITS_FOR: Final[Mapping[str, str]] = {
    "suspend": "the guest: to suspend",
    "switch_qemu_logdirty": "the device model: its log-dirty mode",
    "static_data_done": "the toolstack: to make the domain's CPU policy complete",
    "postcopy_transition": "the toolstack: to hand the guest over",
    "complete": "the toolstack: to take the result",
}
"""What a helper waits for during a callback, if that is worth telling."""


class OperationStatus(NamedTuple):
    """The fields that the module's table does not explain:

    `phase` is a `Phase` or `Stage` of the stream, or the step of the handshake or file around it.
    `rounds` have ended. `round_pages` of `round_total` pfns of this one are done; of a restore,
    pages that the domain has. `dirty_pages` were dirty at the last look (-1: none yet).
    `last_round_expected` and `last_round_time`, in ms, say how good the last estimate was; both are
    None before the second round. `postcopy_total` pages were left to postcopy; of these,
    `postcopy_remaining` are still to come. `longest_wait` is how long, in ms, a vCPU has been
    waiting for a page now. `paused` says whether sending is paused, `waits_for` who or what the
    operation waits for, or is empty. `engine` is empty as long as it is not known. Limits that the
    operation does not have are None, as is any figure that is not known.
    """

    role: Role
    domid: int
    domain: str
    pid: int
    status: MigrationStatus
    phase: str
    engine: str
    total_time: int
    transferred: int
    remaining: int | None
    total: int | None
    normal: int
    page_size: int
    rounds: int
    dirty_sync_count: int
    round_pages: int
    round_total: int
    dirty_pages: int
    dirty_pages_rate: float | None
    memory_bps: float | None
    time_remaining: int | None
    expected_downtime: int | None
    downtime: int | None
    last_round_expected: int | None
    last_round_time: int | None
    postcopy: bool
    postcopy_total: int
    postcopy_remaining: int
    postcopy_requests: int
    postcopy_blocktime: int | None
    longest_wait: int | None
    paused: bool
    waits_for: str
    max_bandwidth: int | None
    downtime_limit: int | None
    max_rounds: int | None
    abort_after: int | None
    dirty_threshold: int | None

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> OperationStatus:
        """Raises ValueError for anything else."""
        try:
            status = cls(**fields)
            return status._replace(role=Role(status.role), status=MigrationStatus(status.status))
        except TypeError as error:
            raise ValueError(f"no status: {error}") from None


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def status_of(board: Board) -> MigrationStatus:
    phase = board.phase
    if not phase and not board.ints[Word.BYTES]:
        return MigrationStatus.SETUP
    if phase in _AFTER_TRANSITION:
        return MigrationStatus.POSTCOPY_ACTIVE
    return MigrationStatus.DEVICE if board.reals[Word.SUSPENDED_AT] else MigrationStatus.ACTIVE


def remaining_pages(board: Board) -> int | None:
    """Pages that are still to be sent or to come, as far as is known now: what the guest makes
    dirty meanwhile comes in addition. None before the first round."""
    if board.ints[Word.POSTCOPY_TOTAL]:
        return board.ints[Word.POSTCOPY_LEFT]
    total = board.ints[Word.ROUND_TOTAL]
    if not total:
        return None
    left = total - board.ints[Word.ROUND_DONE]
    memory = board.ints[Word.TOTAL_PAGES]
    if memory and not board.ints[Word.ROUNDS]:
        # The first round has holes, too.
        left = min(left, memory - board.ints[Word.PAGES])
    return max(0, left)


def downtime_of(board: Board, bytes_per_second: float | None) -> int | None:
    """Milliseconds for which the guest would stand still if precopy ended now; None if that is not
    known."""
    dirty = board.ints[Word.DIRTY_COUNT]
    if dirty < 0 or not bytes_per_second:
        return None
    return milliseconds(dirty * PAGE_BYTES / bytes_per_second)


def known(figure: float, digits: int = 1) -> float | None:
    """The board has 0 for a real that is not known."""
    return round(figure, digits) if figure else None
