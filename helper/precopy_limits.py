"""The precopy policy from the drop-in's settings, for a toolstack that has none: mainline libxl
provides no callback for it. What it is to do can be changed from another shell."""

from __future__ import annotations

import time
from collections.abc import Callable

from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.job import Job
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy, XCFlags, XentoollogLevel
from xen_save_helper.ipc_schema.channel.precopy_rule import LIBXENGUEST_PRECOPY, PrecopyRounds
from xen_save_helper.ipc_schema.hints import Final

_LEVELS: Final = {
    PrecopyPolicy.CONTINUE_PRECOPY: XentoollogLevel.DETAIL,
    PrecopyPolicy.STOP_AND_COPY: XentoollogLevel.INFO,
    PrecopyPolicy.ABORT: XentoollogLevel.ERROR,
}


def limited_policy(
    job: Job, sent: Callable[[], int], reporter: Reporter
) -> Callable[[int, int, int], PrecopyPolicy]:
    """A precopy policy (of iteration, total_written, dirty_count) by the job's limits, or else by
    libxenguest's. It traces and logs what it decided and why, once for each round and dirty count,
    unless that is what libxenguest would have done without a word."""
    given = job.limits or LIBXENGUEST_PRECOPY
    clock = time.monotonic if job.steered is None else job.steered.sending_clock
    rounds = PrecopyRounds(given, sent, clock)
    if job.steered is not None and job.request.xcflags & XCFlags.LIVE:
        job.steered.rounds = rounds
    told: tuple[int, int] | None = None

    def policy(iteration: int, total_written: int, dirty_count: int) -> PrecopyPolicy:
        nonlocal told
        decision = rounds.ask(iteration, dirty_count)
        if decision.policy is PrecopyPolicy.CONTINUE_PRECOPY and told == (iteration, dirty_count):
            return decision.policy
        if job.limits is None and rounds.limits is given and rounds.wanted is None:
            return decision.policy
        told = (iteration, dirty_count)
        rate = rounds.bytes_per_second
        reporter.event(
            "precopy_policy",
            iteration=iteration,
            total_written=total_written,
            dirty_count=dirty_count,
            octets_per_second=None if rate is None else round(rate),
            decision=decision.policy.name,
            why=decision.why,
        )
        name = decision.policy.name.lower().replace("_", " ")
        reporter.log(_LEVELS[decision.policy], f"precopy policy: {name}: {decision.why}")
        return decision.policy

    return policy
