"""What every part of the engine needs besides the domain and the stream."""

from __future__ import annotations

from collections.abc import Callable

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.hypervisors.interface import Bitmap, Domain
from xen_save_helper.helper.job import Job, PostcopyProgress, RestoreResults, StreamCounts
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Protocol
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

if TYPE_CHECKING:
    from xen_save_helper.ipc_schema.streams.postcopy_offer import PostcopyOffer


class PageServer(Protocol):
    """Of a save whose postcopy is left to another process (`helper.postcopy_link.source`)."""

    def offer(self) -> PostcopyOffer:
        """Where it listens. Raises OSError with its reason if it cannot."""

    def refusal(self, seconds: float) -> str | None:
        """Why the receiver cannot do postcopy, "" if it can; None if it has not said so within
        `seconds`. Raises OSError if the page server has ended."""

    def is_ready(self, seconds: float) -> bool:
        """Whether the receiver has done what the last record that went ahead wants; False if it has
        not said so within `seconds`. Raises OSError if it has given up, or the page server."""

    def map(self, bitmap: Bitmap) -> None:
        """Have it map these pages: anew, if it has. Raises OSError."""

    def keep(self, bitmap: Bitmap) -> int:
        """Have it serve these pages, which it has mapped; returns how many they are. Raises
        OSError."""

    def let_go(self) -> str:
        """The save is done: it serves from here on, whatever becomes of this process. Returns its
        name in the directory of control sockets. Raises OSError."""


class Pager(Protocol):
    """Of a restore that ends for its controller before its last pages are there
    (`helper.postcopy_link.destination`)."""

    @property
    def connected(self) -> bool:
        """Whether there is a page server."""

    def offered(self, offer: PostcopyOffer, domain: Domain) -> None:
        """Connect to the page server, and say whether this domain can be paged."""

    def ready(self) -> None:
        """Say that what the last record which came ahead wants is done."""

    def leave(
        self, results: RestoreResults, progress: Callable[[], PostcopyProgress], missing: Bitmap
    ) -> None:
        """Tell the controller that the domain is restored, and go on without it. `progress` may be
        called from any thread; `missing` are the pages that are still to come. Raises
        ChannelError."""

    def fileno(self) -> int:
        """What pages come from, and faults go to, from then on."""

    def step(self, name: str) -> None:
        """See `seams.Seams`."""


class Environment(NamedTuple):
    """`statistics` are kept up to date even if the save or restore fails. `page_server` and `pager`
    are there if postcopy may be done so."""

    job: Job
    reporter: Reporter
    abort: Abort
    statistics: StreamCounts
    page_server: PageServer | None = None
    pager: Pager | None = None
