"""`xc_domain_restore` of libxenguest, as libxl's helper calls it (libxl_save_helper.c)."""

from __future__ import annotations

import ctypes
import errno
from contextlib import ExitStack

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import Channel
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.cpu_check import check_features
from xen_save_helper.helper.hypervisors.xen.cpu_policy import system_cpu_policy
from xen_save_helper.helper.hypervisors.xen.libraries import abi_version, load, versioned
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl
from xen_save_helper.helper.job import Job, RestoreResults, StreamCounts
from xen_save_helper.helper.libxenguest.abi import ABIS, callback_names, provide
from xen_save_helper.helper.libxenguest.callbacks import Callbacks
from xen_save_helper.helper.libxenguest.peek import peek_policy
from xen_save_helper.helper.libxenguest.thread_meter import ThreadMeter
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    Answer,
    StreamType,
    XentoollogLevel,
)
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.phases import Stage
from xen_save_helper.ipc_schema.streams.static_data import Absent
from xen_save_helper.ipc_schema.trace import Trace

_NEEDED: Final[dict[StreamType, tuple[str, ...]]] = {
    StreamType.PLAIN: (),
    StreamType.REMUS: ("checkpoint",),
    StreamType.COLO: ("checkpoint", "suspend", "postcopy", "wait_checkpoint", "restore_results"),
}
"""The callbacks that xc_domain_restore asserts to be provided."""


def domain_restore(job: Job, channel: Channel, abort: Abort, trace: Trace) -> RestoreResults:
    """Restore into the domain that libxl has created.

    Raises OSError with libxc's errno (also for finding and opening the libraries), ChannelError if
    the controller is gone, and anything that a callback raised.
    """
    request = job.request
    missing = [name for name in _NEEDED[request.stream_type] if not channel.provides(name)]
    if missing:
        raise OSError(
            errno.EINVAL,
            f"the controller provides no {' and no '.join(missing)} callback: "
            f"stream type {request.stream_type.name}",
        )
    with ExitStack() as stack:
        meter = ThreadMeter(reading=True)
        stack.callback(meter.close)
        counted = meter if channel.provides("statistics") else None
        callbacks = Callbacks(channel, abort, trace, counted, job.board)
        callbacks.begin(Stage.MEMORY, meter)
        logger = callbacks.logger()
        xch = stack.enter_context(Xenctrl(logger))
        abi = ABIS[abi_version()]
        library = load(versioned("libxenguest"), abi.prototypes)
        struct = abi.restore_callbacks()
        for name in callback_names(abi.restore_callbacks):
            if channel.provides(name):
                answered = CATALOGUE[name].answer is not Answer.NONE
                provide(struct, name, callbacks.ask(name) if answered else callbacks.tell(name))
        store_gfn, console_gfn = ctypes.c_ulong(), ctypes.c_ulong()
        with meter.aside():
            callbacks.guard_stream(request.io_fd, meter, reading=True)
        stack.callback(abort.release_stream)
        with meter.aside():
            _check_cpu(request, xch, abort, callbacks.reporter)
        ctypes.set_errno(0)
        retval = library.xc_domain_restore(
            xch.handle,
            request.io_fd,
            request.domid,
            request.store_evtchn,
            ctypes.byref(store_gfn),
            request.store_domid,
            request.console_evtchn,
            ctypes.byref(console_gfn),
            request.console_domid,
            int(request.stream_type),
            ctypes.byref(struct),
            request.back_fd,
            *abi.restore_tail,
        )
        callbacks.check("xc_domain_restore", retval, ctypes.get_errno())
        return RestoreResults(
            store_gfn=store_gfn.value,
            console_gfn=console_gfn.value,
            statistics=StreamCounts(size=meter.of_stream()),
        )


def _check_cpu(request: HelperRequest, xch: Xenctrl, abort: Abort, reporter: Reporter) -> None:
    """Raise OSError(ENOTSUP) if the host lacks what the stream's CPU policy offers, unless that is
    to be ignored."""
    policy = peek_policy(request.io_fd, abort)
    if policy is Absent.ALTOGETHER:
        return
    try:
        if policy is Absent.YET:
            raise OSError(errno.ETIMEDOUT, "the front of the stream does not arrive")
        offered = system_cpu_policy(xch, hvm=policy.hvm)
    except OSError as bad:
        text = f"cannot check that this host has the guest's CPU features: {bad.strerror}"
        reporter.log(XentoollogLevel.WARN, text)
        return
    check_features(policy.cpuid, offered, request.missing_cpu_features, reporter)
