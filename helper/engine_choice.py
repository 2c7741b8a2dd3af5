"""Chooses the engine for a job: the requested one, or libxenguest if only that can do it."""

from __future__ import annotations

import errno

from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.ipc_schema.channel.helper_request import Engine, HelperRequest
from xen_save_helper.ipc_schema.channel.messages import StreamType


def choose_engine(request: HelperRequest) -> tuple[Engine, str]:
    """The engine, and why it is not the requested one; empty if it is.

    Raises OSError: ENOTSUP for an engine that does not work on the hypervisor, EOPNOTSUPP for a
    request that the engine cannot fulfil, and what Xen says about the domain.
    """
    if request.hypervisor != XEN:
        if request.engine is Engine.LIBXENGUEST:
            raise OSError(
                errno.ENOTSUP,
                f"engine {request.engine} works on the hypervisor {XEN} only, not on "
                f"{request.hypervisor}",
            )
        return request.engine, ""
    reason = _beyond_own(request) if request.engine is Engine.OWN else ""
    engine = Engine.LIBXENGUEST if reason else request.engine
    if engine is Engine.LIBXENGUEST:
        for wanted, what in (
            (request.bandwidth, "bandwidth limit"),
            (request.postcopy, "postcopy"),
        ):
            if wanted:
                why = f", and works on {reason}" if reason else ""
                raise OSError(errno.EOPNOTSUPP, f"libxenguest has no {what}{why}")
    return engine, reason


def what_works_on_what(engine: Engine) -> str:
    """A line about which engine handles which guests of a real Xen, if `engine` is chosen."""
    if engine is Engine.LIBXENGUEST:
        return "libxenguest saves and restores all guests"
    return (
        "its own engine saves and restores HVM and PVH guests, libxenguest PV guests and the "
        "streams of Remus and COLO"
    )


def _beyond_own(request: HelperRequest) -> str:
    """What our own engine cannot do on Xen; empty if it can."""
    if request.stream_type is not StreamType.PLAIN:
        return f"a {request.stream_type.name} stream"
    from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl

    with Xenctrl() as xenctrl:
        hvm = xenctrl.domain_getinfo(request.domid).hvm
    return "" if hvm else f"a PV domain, as {request.domid} is"
