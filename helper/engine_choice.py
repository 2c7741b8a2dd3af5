"""Chooses the engine for a job: the requested one, or libxenguest if only that can do it."""

from __future__ import annotations

import errno

from xen_save_helper.helper.hypervisors import XEN, open_domain
from xen_save_helper.ipc_schema.channel.helper_request import Engine, HelperRequest
from xen_save_helper.ipc_schema.channel.messages import StreamType
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from xen_save_helper.helper.hypervisors.interface import Domain


def choose_engine(request: HelperRequest) -> tuple[Engine, str, Domain | None]:
    """The engine, why it is not the requested one ("" if it is), and the domain if it had to be
    opened to know that and is our own engine's.

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
        return request.engine, "", None
    reason, domain = _beyond_own(request) if request.engine is Engine.OWN else ("", None)
    engine = Engine.LIBXENGUEST if reason else request.engine
    if engine is Engine.LIBXENGUEST:
        for wanted, what in (
            (request.bandwidth, "bandwidth limit"),
            (request.postcopy, "postcopy"),
        ):
            if wanted:
                why = f", and works on {reason}" if reason else ""
                raise OSError(errno.EOPNOTSUPP, f"libxenguest has no {what}{why}")
    return engine, reason, domain


def what_works_on_what(engine: Engine) -> str:
    """A line about which engine handles which guests of a real Xen, if `engine` is chosen."""
    if engine is Engine.LIBXENGUEST:
        return "libxenguest saves and restores all guests"
    return (
        "its own engine saves and restores HVM and PVH guests, libxenguest PV guests and the "
        "streams of Remus and COLO"
    )


def _beyond_own(request: HelperRequest) -> tuple[str, Domain | None]:
    """What our own engine cannot do on Xen, or "" and the domain, which it can work on."""
    if request.stream_type is not StreamType.PLAIN:
        return f"a {request.stream_type.name} stream", None
    domain = open_domain(request.hypervisor, request.domid)
    try:
        hvm = domain.getinfo().hvm
    except BaseException:
        domain.close()
        raise
    if hvm:
        return "", domain
    domain.close()
    return f"a PV domain, as {request.domid} is", None
