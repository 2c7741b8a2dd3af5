"""`xc_domain_save` of libxenguest, as libxl's helper calls it (libxl_save_helper.c)."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from contextlib import ExitStack

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import Channel
from xen_save_helper.helper.hypervisors.xen.libraries import abi_version, load, versioned
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl
from xen_save_helper.helper.job import Job, StreamCounts
from xen_save_helper.helper.libxenguest.abi import (
    ABIS,
    PrecopyStats,
    PrecopyStats4_14,
    callback_names,
    provide,
)
from xen_save_helper.helper.libxenguest.callbacks import Callbacks
from xen_save_helper.helper.libxenguest.thread_meter import ThreadMeter
from xen_save_helper.helper.paged_in import check_paged_in
from xen_save_helper.helper.precopy_limits import limited_policy
from xen_save_helper.ipc_schema.board import Word
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy, StreamType, XCFlags
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.phases import Phase
from xen_save_helper.ipc_schema.trace import Trace

_U32: Final = 2**32 - 1
_INT: Final = 2**31 - 1
_PFN_BYTES: Final = 8
_BATCH: Final = 1024
_BATCH_BYTES: Final = 16
"""libxc's PAGE_DATA records list up to 1024 pfns each, after 16 bytes of headers."""
_PAGE: Final = 4096

_NEEDED: Final = {
    StreamType.PLAIN: ("suspend",),
    StreamType.REMUS: ("suspend", "checkpoint", "postcopy"),
    StreamType.COLO: ("suspend", "checkpoint", "postcopy", "wait_checkpoint"),
}
"""The callbacks that xc_domain_save calls unchecked, or asserts to be provided."""


_Stats = PrecopyStats | PrecopyStats4_14


def domain_save(job: Job, channel: Channel, abort: Abort, trace: Trace) -> StreamCounts:
    """Save the domain.

    Raises OSError with libxc's errno (also for finding and opening the libraries), ChannelError if
    the controller is gone, and anything that a callback raised.
    """
    request, limits = job.request, job.limits
    with ExitStack() as stack:
        meter = ThreadMeter(reading=False)
        stack.callback(meter.close)
        own_policy = limits is not None and not channel.provides("precopy_policy")
        counted = own_policy or channel.provides("statistics")
        callbacks = Callbacks(channel, abort, trace, meter if counted else None, job.board)
        callbacks.begin(Phase.PRECOPY if request.xcflags & XCFlags.LIVE else Phase.SUSPEND, meter)
        logger = callbacks.logger()
        xch = stack.enter_context(Xenctrl(logger))
        abi = ABIS[abi_version()]
        library = load(versioned("libxenguest"), abi.prototypes)
        info = xch.domain_getinfo(request.domid)
        _check_provided(request.stream_type, info.hvm, channel)
        check_paged_in(request.domid, info.paged_pages)

        struct = abi.save_callbacks()
        for name in callback_names(abi.save_callbacks):
            if channel.provides(name) and name != "precopy_policy":
                provide(struct, name, callbacks.ask(name))
        policy = _policy(callbacks, channel, job, meter)
        if policy is not None:
            provide(struct, "precopy_policy", policy)
        with meter.aside():
            callbacks.guard_stream(request.io_fd, meter)
        stack.callback(abort.release_stream)
        ctypes.set_errno(0)
        retval = library.xc_domain_save(
            xch.handle,
            request.io_fd,
            request.domid,
            request.xcflags & (XCFlags.LIVE | XCFlags.DEBUG),
            ctypes.byref(struct),
            int(request.stream_type),
            request.back_fd,
        )
        callbacks.check("xc_domain_save", retval, ctypes.get_errno())
        size = meter.of_stream()
        return StreamCounts(
            rounds=callbacks.rounds, pages=_pages(size, callbacks.frames), size=size
        )


def _check_provided(stream_type: StreamType, hvm: bool, channel: Channel) -> None:
    """Raise OSError(EINVAL) for a missing callback: libxc would call a null pointer, or fail an
    assertion."""
    needed = _NEEDED[stream_type] + (("switch_qemu_logdirty",) if hvm else ())
    missing = [name for name in needed if not channel.provides(name)]
    if missing:
        what = f"a {'HVM or PVH' if hvm else 'PV'} domain, stream type {stream_type.name}"
        raise OSError(
            errno.EINVAL, f"the controller provides no {' and no '.join(missing)} callback: {what}"
        )


def _policy(
    callbacks: Callbacks, channel: Channel, job: Job, meter: ThreadMeter
) -> Callable[[_Stats, int], int] | None:
    """The policy that decides after each round: the controller's, the settings', or (None)
    libxenguest's own."""
    if channel.provides("precopy_policy"):
        return callbacks.guard(
            "precopy_policy", _ask_controller(callbacks), int(PrecopyPolicy.ABORT)
        )
    if job.limits is None and (job.steered is None or not job.request.xcflags & XCFlags.LIVE):
        return None
    policy = limited_policy(job, meter.of_stream, callbacks.reporter)

    def decide(stats: _Stats, _data: int) -> int:
        _count_dirty(callbacks, stats)
        decision = policy(stats.iteration, stats.total_written, stats.dirty_count)
        if decision is PrecopyPolicy.ABORT:
            ctypes.set_errno(errno.ECANCELED)
        return int(decision)

    return callbacks.guard("precopy_policy", decide, int(PrecopyPolicy.ABORT))


def _count_dirty(callbacks: Callbacks, stats: _Stats) -> None:
    if stats.dirty_count >= 0:
        callbacks.reporter.board.ints[Word.DIRTY_COUNT] = stats.dirty_count


_DECISIONS: Final = frozenset(PrecopyPolicy)


def _ask_controller(callbacks: Callbacks) -> Callable[[_Stats, int], int]:
    def ask(stats: _Stats, _data: int) -> int:
        _count_dirty(callbacks, stats)
        answer = callbacks.reporter.call(
            "precopy_policy",
            iteration=stats.iteration,
            total_written=min(stats.total_written, _U32),
            dirty_count=min(stats.dirty_count, _INT),
        )
        if answer == PrecopyPolicy.POSTCOPY:
            raise OSError(
                errno.EOPNOTSUPP,
                "precopy policy asked for postcopy, which the engine libxenguest cannot do",
            )
        if answer not in _DECISIONS:
            raise OSError(
                errno.EINVAL, f"precopy_policy answered {answer}, which is not a decision"
            )
        if answer == PrecopyPolicy.ABORT:
            ctypes.set_errno(errno.ECANCELED)
        return answer

    return ask


def _pages(size: int, frames: int) -> int:
    """How many pages were sent with contents: the stream without its lists of pfns, in whole pages
    (all other records together are shorter than one, or a few)."""
    lists = frames * _PFN_BYTES + -(-frames // _BATCH) * _BATCH_BYTES
    return max(0, (size - lists) // _PAGE)
