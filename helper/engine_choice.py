"""Which engine does a job: the one that was asked for, or libxenguest for what only it can do."""

from __future__ import annotations

import errno

from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.ipc_schema.channel.helper_request import Engine, HelperRequest
from xen_save_helper.ipc_schema.channel.messages import StreamType


def choose_engine(request: HelperRequest) -> tuple[Engine, str]:
    """The engine, and the reason why it is not the one that was asked for; empty if it is.

    Raises OSError: ENOTSUP for an engine that does not work on the hypervisor, EOPNOTSUPP for what
    was asked for and the engine lacks, and what Xen says of the domain.
    """
    if request.hypervisor != XEN:
        if request.engine is Engine.LIBXENGUEST:
            raise OSError(
                errno.ENOTSUP,
                f"engine {request.engine} works on the hypervisor {XEN} alone, not on "
                f"{request.hypervisor}",
            )
        return request.engine, ""
    reason = _beyond_own(request) if request.engine is Engine.OWN else ""
    engine = Engine.LIBXENGUEST if reason else request.engine
    if engine is Engine.LIBXENGUEST and request.bandwidth:
        raise OSError(
            errno.EOPNOTSUPP,
            "libxenguest has no bandwidth limit" + (f", and works on {reason}" if reason else ""),
        )
    return engine, reason


def what_works_on_what(engine: Engine) -> str:
    """A line on which guests of a real Xen each engine works, `engine` being the one to use."""
    if engine is Engine.LIBXENGUEST:
        return "libxenguest saves and restores all guests"
    return (
        "its own engine saves and restores HVM and PVH guests, libxenguest PV guests and the "
        "streams of Remus and COLO"
    )


def _beyond_own(request: HelperRequest) -> str:
    """What our own engine does not do on Xen; empty for what it does."""
    if request.stream_type is not StreamType.PLAIN:
        return f"a {request.stream_type.name} stream"
    from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl

    with Xenctrl() as xenctrl:
        hvm = xenctrl.domain_getinfo(request.domid).hvm
    return "" if hvm else f"a PV domain, as {request.domid} is"
