"""What a domain's shared memory says of its guest."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from xen_save_helper.helper.hypervisors.interface import ShutdownReason
from xen_save_helper.helper.hypervisors.simulated.layout import BUCKETS_PER_OCTAVE, DomainPage
from xen_save_helper.helper.hypervisors.simulated.open_domain import OpenDomain
from xen_save_helper.toolstack.hosts.interface import GuestReport, GuestState


def state_of(domain: OpenDomain) -> GuestState:
    """The domain's state. Raises ProcessLookupError if it is gone."""
    info = domain.getinfo()
    if info.shutdown_reason is ShutdownReason.SUSPEND:
        return GuestState.SUSPENDED
    if info.shutdown_reason is not None:
        return GuestState.CRASHED
    return GuestState.PAUSED if info.paused else GuestState.RUNNING


def _quantile_us(page: DomainPage, share: float) -> float | None:
    """The fault latency that `share` of all faults did not exceed, in microseconds."""
    counts = list(accumulate(page.fault_histogram))
    if not counts[-1]:
        return None
    bucket = bisect_left(counts, share * counts[-1])
    return float(2 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE) / 1000)


def report_of(domain: OpenDomain) -> GuestReport:
    """The guest's report. If its process died before `domain` was opened, all that says is that the
    guest has crashed."""
    state = state_of(domain)
    killed = None if domain.alive() else "the guest's process is gone"
    if not domain.attached:
        return GuestReport(state, 0, 0, True, killed, None, None, 0, None, None)
    page = domain.shared.domain
    return GuestReport(
        state=state,
        steps=page.steps,
        pages_checked=page.pages_checked,
        memory_ok=not page.memory_wrong,
        crash=page.crash.decode("utf-8", "replace") or killed,
        suspended_at=page.suspended_at or None,
        first_step_at=page.first_step_at or None,
        fault_count=page.faults,
        fault_p50_us=_quantile_us(page, 0.5),
        fault_p99_us=_quantile_us(page, 0.99),
    )
