"""The precopy rounds of a save: sending dirty pages, and when to stop.

This is `send_dirty_pages` and `send_memory_live` of the postcopy series (xc_sr_save.c), which ask
the policy before every batch, so that a slow round can be left early. What is ours: batches that
carried no contents (holes, which a guest's address space has far more of than pages) ask nobody.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping

from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.engine.bitmaps import add, move
from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.engine.page_stream import MapAhead, PageWriter
from xen_save_helper.helper.hypervisors.interface import Bitmap, Domain
from xen_save_helper.helper.job import Job
from xen_save_helper.ipc_schema.board import AS_ASKED, Word
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.ipc_schema.channel.precopy_rule import LIBXENGUEST_PRECOPY, decide
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_number
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of

if TYPE_CHECKING:
    from xen_save_helper.helper.engine.hot_pages import HotPages

UNKNOWN = -1
"""The dirty count during a round."""

Policy = Callable[[int, int, int], PrecopyPolicy]
"""From (iteration, total_written, dirty_count) to a decision."""

_U32 = 2**32 - 1


def simple_precopy_policy(iteration: int, total_written: int, dirty_count: int) -> PrecopyPolicy:
    """libxenguest's own policy, for a controller that has none."""
    del total_written
    return decide(LIBXENGUEST_PRECOPY, iteration, dirty_count, None).policy


def precopy_policy(reporter: Reporter, job: Job, sent: Callable[[], int]) -> Policy:
    """The controller's policy if it has one, else that of the job's limits, else libxenguest's.
    `sent` counts the stream's bytes."""
    if not reporter.provides("precopy_policy"):
        if job.limits is None and job.steered is None:
            return simple_precopy_policy
        from xen_save_helper.helper.precopy_limits import limited_policy

        return limited_policy(job, sent, reporter)

    def ask(iteration: int, total_written: int, dirty_count: int) -> PrecopyPolicy:
        answer = reporter.call(
            "precopy_policy",
            iteration=iteration,
            total_written=total_written & _U32,
            dirty_count=dirty_count,
        )
        try:
            return PrecopyPolicy(answer)
        except ValueError:
            raise OSError(
                errno.EINVAL, f"precopy_policy answered {answer}, which is not a decision"
            ) from None

    return ask


class Rounds:
    """Sends the dirty pages, and keeps track of those left for later. Bitmaps have an element for
    each pfn below the domain's p2m_size."""

    def __init__(self, domain: Domain, pages: PageWriter, environment: Environment) -> None:
        self.p2m_size = domain.maximum_gpfn() + 1
        self.dirty = Bitmap(self.p2m_size)
        self.written = Bitmap()
        """What the domain, now suspended, has written since the dirty bitmap was last read before;
        known if there may be a postcopy."""
        self._deferred = Bitmap(self.p2m_size)
        self._domain = domain
        self._pages = pages
        self._reporter = environment.reporter
        self._statistics = environment.statistics
        self._board = environment.reporter.board
        self._read_at: float | None = None
        """When the dirty bitmap was last read, or log-dirty mode enabled."""
        request = environment.job.request
        self._sparse = request.sparse
        self._max_downtime_ms = request.max_downtime_ms
        self._hot: HotPages | None = None
        if request.postcopy or environment.page_server is not None:
            from xen_save_helper.helper.engine.hot_pages import HotPages

            # Even if no downtime is admitted yet.
            self._hot = HotPages(self.p2m_size)
        self._iteration = 0
        self._total_written = 0
        self._page_data = record_number(RecordType.PAGE_DATA, VERSION)

    def send_all_pages(self, doing_what: str, *, sparse: bool = False) -> None:
        """Send all pages of a suspended domain; `sparse`: those of zeros without contents, if this
        stream has not carried them before."""
        self.dirty[:] = b"\1" * self.p2m_size
        self._round(doing_what, self.p2m_size, None, sparse=sparse)

    def send_final(self, doing_what: str) -> None:
        """Send the dirty pages of a suspended domain."""
        self._round(doing_what, self.dirty.count(1), None)

    def send_ahead(self, needed: Mapping[str, Pfns]) -> None:
        """Send those of the pages `needed` (by what they are) that are dirty, of a suspended
        domain, and the hottest others if the caller admits a downtime; leave the rest to postcopy.
        Needed pages that are not dirty have been sent."""
        left = self.dirty
        self.dirty = Bitmap(self.p2m_size)
        for why, pfns in needed.items():
            dirty = pfns_of(pfn for pfn in pfns if pfn < self.p2m_size and left[pfn])
            move(dirty, left, self.dirty)
            self._reporter.event("ahead", why=why, pfns=pfns.tolist(), sent=len(dirty))
        if self._hot is not None and (downtime := self._downtime_now()):
            move(self._hottest(self._hot, left, downtime), left, self.dirty)
        self._round("Frames ahead", self.dirty.count(1), None)
        self.dirty = left

    def _downtime_now(self) -> int:
        """The milliseconds that the caller admits by now."""
        steered = self._board.ints[Word.MAX_DOWNTIME]
        return self._max_downtime_ms if steered == AS_ASKED else steered

    def _hottest(self, hot: HotPages, left: Bitmap, max_downtime_ms: int) -> Pfns:
        choice = hot.choose(left, self.dirty.count(1), max_downtime_ms)
        rate = choice.pages_per_second
        self._reporter.event(
            "hot_pages",
            hot=choice.hot,
            room=choice.room,
            sent=len(choice.pfns),
            max_downtime_ms=max_downtime_ms,
            pages_per_second=None if rate is None else round(rate),
        )
        self._reporter.info(
            f"{len(choice.pfns)} of {choice.hot} hot pages go ahead of postcopy; "
            f"{choice.room} can be sent in {max_downtime_ms} ms"
        )
        return choice.pfns

    def send_memory_live(self, policy: Policy) -> PrecopyPolicy:
        """Send precopy rounds, with log-dirty mode on, until the policy decides on STOP_AND_COPY or
        POSTCOPY. Raises OSError(ECANCELED) if it decides on ABORT."""
        self.dirty[:] = b"\1" * self.p2m_size
        dirty_count = self.p2m_size
        self._read_at = time.monotonic()
        while True:
            doing_what = f"Frames iteration {self._iteration}"
            sparse = self._sparse and not self._iteration
            decision = self._round(doing_what, dirty_count, policy, sparse=sparse)
            if decision is not PrecopyPolicy.CONTINUE_PRECOPY:
                return decision
            self._iteration += 1
            dirty_count = self._read_dirty()
            decision = self._ask(policy, dirty_count)
            if decision is not PrecopyPolicy.CONTINUE_PRECOPY:
                add(self.dirty, self._deferred)
                return decision

    def gather_left(self) -> Bitmap:
        """Read the dirty bitmap of the domain, which runs, after the last round: all pages that are
        left by now. Who finds pages without contents among them may take those out."""
        self._read_dirty()
        add(self.dirty, self._deferred)
        return self._deferred

    def gather_final(self) -> int:
        """Read the dirty bitmap of the suspended domain, and add all pages that were deferred;
        returns how many there are."""
        self._read_dirty(final=True)
        if self._hot is not None:
            self.written = Bitmap(self.dirty)
        add(self._deferred, self.dirty)
        self._deferred = Bitmap()  # never both at once: each has a byte for each pfn
        self._deferred = Bitmap(self.p2m_size)
        return self.dirty.count(1)

    def _read_dirty(self, *, final: bool = False) -> int:
        count = self._domain.logdirty_clean(self.dirty, final=final)
        now, board = time.monotonic(), self._board
        if self._read_at is not None and now > self._read_at:
            board.reals[Word.DIRTY_RATE] = count / (now - self._read_at)
        self._read_at = now
        board.ints[Word.DIRTY_COUNT] = count
        if self._hot is not None:
            self._hot.read(self.dirty)
        return count

    def _ask(self, policy: Policy, dirty_count: int) -> PrecopyPolicy:
        decision = policy(self._iteration, self._total_written, dirty_count)
        if decision is PrecopyPolicy.ABORT:
            round_ = self._iteration + 1
            raise OSError(errno.ECANCELED, f"precopy policy asked for an abort in round {round_}")
        return decision

    def _round(
        self, doing_what: str, entries: int, policy: Policy | None, *, sparse: bool = False
    ) -> PrecopyPolicy:
        """Send the dirty pages batch by batch. If the policy ends the round early, the rest is left
        to the next phase."""
        started = time.monotonic()
        sending_since = self._board.sending_clock(started)
        words, reals = self._board.ints, self._board.reals
        words[Word.ROUND_DONE], words[Word.ROUND_TOTAL] = 0, entries
        rate = reals[Word.ROUND_RATE]
        decision = PrecopyPolicy.CONTINUE_PRECOPY
        written = 0
        contents = 0
        asked_at = -1
        with MapAhead(self._pages, self._page_data, self.dirty, sparse=sparse) as ahead:
            while ahead.more():
                if policy is not None and contents != asked_at:
                    asked_at = contents
                    decision = self._ask(policy, UNKNOWN)
                    if decision is not PrecopyPolicy.CONTINUE_PRECOPY:
                        add(self.dirty, self._deferred)
                        break
                batch = ahead.send()
                first, end = batch.pfns[0], batch.pfns[-1] + 1
                self.dirty[first:end] = bytes(end - first)
                written += len(batch.pfns)
                contents += batch.pages
                self._total_written += len(batch.pfns)
                self._statistics.pages += batch.pages
                words[Word.ROUND_DONE] = written
                words[Word.PAGES] = self._statistics.pages
                self._reporter.progress(doing_what, written, entries)
        if written:
            self._statistics.rounds += 1
            words[Word.ROUNDS] = self._statistics.rounds
        now = time.monotonic()
        seconds = self._board.sending_clock(now) - sending_since
        if decision is PrecopyPolicy.CONTINUE_PRECOPY and contents and seconds > 0:
            reals[Word.LAST_EXPECTED] = entries / rate if rate else 0.0
            reals[Word.LAST_TOOK] = seconds
            reals[Word.ROUND_RATE] = contents / seconds
        if self._hot is not None:
            self._hot.sent(contents, seconds)
        self._reporter.event(
            "round",
            iteration=self._iteration,
            doing_what=doing_what,
            pfns=written,
            pages=contents,
            dirty_count=entries,
            decision=decision.name,
            seconds=round(now - started, 6),
        )
        return decision
