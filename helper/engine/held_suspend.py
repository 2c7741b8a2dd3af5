"""What others ask of a guest while its pages are missing: it is seen here, and held back."""

from __future__ import annotations

import select
import time
from collections.abc import Set

from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.engine.stream_io import BusyPoll
from xen_save_helper.helper.hypervisors.interface import Domain
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel


class HeldSuspend:
    """Requests to suspend or shut down, from before the guest runs until its last page is there.

    A program that does not know of missing pages, such as libxl's own helper, would save them as
    holes. The constructor raises OSError where requests cannot be held.
    """

    def __init__(self, domain: Domain, reporter: Reporter) -> None:
        self._domid = domain.domid
        self._reporter = reporter
        self._hold = domain.hold_suspend()
        self._poll: BusyPoll | None = None
        self._asked = ""
        self._since = 0.0

    def watch(self, poll: BusyPoll, missing: int) -> None:
        """Have `poll` wait for requests, too, and `look` at once."""
        if self._hold is not None:
            self._poll = poll
            poll.register(self._hold.fileno(), select.POLLIN)
            self.look({self._hold.fileno()}, missing)

    def look(self, ready: Set[int], missing: int) -> None:
        """See what the guest is asked for, now that it lacks so many pages, if there is anything
        new among the descriptors that are `ready`."""
        if self._hold is None or self._poll is None or self._hold.fileno() not in ready:
            return
        try:
            asked = self._hold.asked()
        except OSError as error:
            self._look_away()
            self._failed(f"cannot be seen: {error}")
            return
        if asked == self._asked:
            return
        self._asked, self._since = asked, time.monotonic()
        if not asked:
            return
        self._reporter.event("suspend_held", request=asked, missing=missing)
        self._reporter.log(
            XentoollogLevel.WARN,
            f"domain {self._domid} is asked for `{asked}` while {missing} of its pages are "
            "missing: it will see that when they are all there",
        )

    def let_through(self) -> None:
        """No page is missing: the guest may do what it is asked."""
        if self._hold is None:
            return
        self._look_away()
        try:
            asked = self._hold.let_through()
        except OSError as error:
            self._failed(f"stay hidden from it: {error}")
            return
        if asked:
            seconds = round(time.monotonic() - self._since, 6) if self._asked else 0.0
            self._reporter.event("suspend_let_through", request=asked, seconds=seconds)

    def _look_away(self) -> None:
        if self._poll is not None:
            assert self._hold is not None
            self._poll.unregister(self._hold.fileno())
            self._poll = None

    def _failed(self, what: str) -> None:
        """The guest's pages are worth more than the requests."""
        self._reporter.event("suspend_hold_failed", error=what)
        self._reporter.log(
            XentoollogLevel.ERROR, f"requests to domain {self._domid} to suspend {what}"
        )

    def close(self) -> None:
        """What has not been let through stays hidden: the guest lacks pages."""
        if self._hold is not None:
            self._hold.close()
