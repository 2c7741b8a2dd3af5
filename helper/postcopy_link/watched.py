"""A page server or pager, as people see it: what is left, how fast it goes, what holds it up.

It answers on a control socket (`ipc_schema.control`), and says in the host's log (syslog) what
nobody must miss, since the `xl` that started it has gone.
"""

from __future__ import annotations

import errno
import os
import socket
import syslog
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.control_socket import ControlSocket
from xen_save_helper.helper.hypervisors import XEN, glance
from xen_save_helper.helper.job import PostcopyProgress
from xen_save_helper.helper.postcopy_link.scope import enter_scope
from xen_save_helper.helper.postcopy_link.tunnel import Tunnel
from xen_save_helper.ipc_schema.control import Ask, Identity, PostcopyStatus, Role
from xen_save_helper.ipc_schema.trace import Trace

SILENCE_SECONDS: Final = 5.0
"""The other side says something each second."""
_RATE_SECONDS: Final = 5
_LOOK_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 1.0
_SAYS: Final = {
    Role.PAGE_SERVER: "the last pages of its memory are here",
    Role.PAGER: "its last pages are still to come",
}


class Work(NamedTuple):
    """Of the process that is watched."""

    role: Role
    hypervisor: str
    domid: int
    progress: Callable[[], PostcopyProgress]
    tunnel: Tunnel
    abort: Abort
    moved: Callable[[str, int], None] = lambda _address, _port: None
    """Called when the other side is reached at another address. Raises OSError, ValueError."""


class Watched:
    """From the constructor to `close`."""

    def __init__(self, work: Work, directory: str, trace: Trace) -> None:
        self._work = work
        self._trace = trace
        self._domain = glance.name(work.hypervisor, work.domid)
        self._left: deque[tuple[float, int]] = deque(maxlen=_RATE_SECONDS)
        self._trouble = ""
        self._looked = 0.0
        self._has_nobody = False
        """A pager whose page server has ended."""
        self._control: ControlSocket | None = None
        identity = Identity(work.role, work.domid, self._domain, os.getpid())
        syslog.openlog("xen-save-helper", syslog.LOG_PID, syslog.LOG_DAEMON)
        self._log(syslog.LOG_INFO, f"{work.progress().pages} pages: {_SAYS[work.role]}")
        if work.hypervisor == XEN:
            self._enter_scope(identity)
        self.name = ""
        """Under which it can be asked; "" if it cannot."""
        try:
            self._control = ControlSocket(directory, identity, self._answer, self._look)
            self.name = identity.name
        except OSError as error:
            # Nobody can ask, but it works.
            trace.event("no_control", directory=directory, error=str(error))
            self._log(syslog.LOG_WARNING, f"nobody can ask for its state: {error}")

    def _enter_scope(self, identity: Identity) -> None:
        why_not = enter_scope(
            f"xen-save-helper-{identity.name}",
            f"Postcopy {identity.role.value} of {identity.domain}",
        )
        if why_not:
            self._trace.event("no_scope", error=why_not)
            self._log(syslog.LOG_WARNING, f"it may end with who has started it: {why_not}")

    def close(self, why_not: str = "", told: str = "all pages are in place") -> None:
        """`why_not` is why pages are lost, if they are; else `told` is what the log says."""
        work = self._work

        def leaves() -> bool:
            """Nobody looks for the pages of a copy that was destroyed."""
            return work.role is Role.PAGE_SERVER or glance.lives(work.hypervisor, work.domid)

        if self._control is not None:
            self._control.close(why_not, leaves=leaves)
        if why_not:
            left = work.progress().left
            self._log(syslog.LOG_ERR, f"{left} pages are lost: {why_not}")
        else:
            self._log(syslog.LOG_INFO, told)

    def _log(self, priority: int, text: str) -> None:
        work = self._work
        syslog.syslog(
            priority, f"postcopy {work.role.value} of {self._domain} (domid {work.domid}): {text}"
        )

    # In the control socket's thread.

    def _answer(self, ask: Ask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if ask is Ask.STATUS:
            return self._status()._asdict()
        if ask is Ask.RECONNECT:
            return self._reconnect(request.get("address"), request.get("port"))
        if ask is not Ask.ABANDON:
            raise OSError(f"a {self._work.role.value} has no {ask.value}")
        self._work.abort.request(errno.ECONNABORTED, "it was abandoned")
        return {}

    def _reconnect(self, address: object, port: object) -> Mapping[str, Any]:
        if not isinstance(address, str) or not isinstance(port, int):
            raise ValueError("want an address and a port")
        link = self._work.tunnel.move(address, port)
        self._trace.event("reconnect", address=link.address, port=link.port)
        self._work.moved(link.address, link.port)
        return {"address": link.address, "port": link.port}

    def _status(self) -> PostcopyStatus:
        work = self._work
        progress, link = work.progress(), work.tunnel.link()
        self._look_up_name()
        now = time.monotonic()
        since = None if work.role is Role.PAGE_SERVER else 0.0
        if progress.waiting_since is not None:
            since = round(now - progress.waiting_since, 3)
        return PostcopyStatus(
            role=work.role,
            domid=work.domid,
            domain=self._domain,
            pid=os.getpid(),
            pages=progress.pages,
            pages_left=progress.left,
            faults=progress.faults,
            pages_per_second=self._rate(now, progress.left),
            longest_wait=since,
            silent=round(link.silent, 1),
            trouble=self._trouble,
            address=link.address,
            port=link.port,
        )

    def _rate(self, now: float, left: int) -> float:
        if not self._left or now <= self._left[0][0]:
            return 0.0
        then, before = self._left[0]
        return round((before - left) / (now - then), 1)

    def _look(self) -> None:
        """Each second."""
        work = self._work
        now = time.monotonic()
        self._left.append((now, work.progress().left))
        self._look_up_name()
        if work.role is Role.PAGER and not glance.lives(work.hypervisor, work.domid):
            work.abort.request(errno.ESRCH, f"domain {work.domid} is gone")
            return
        silent = work.tunnel.link().silent
        if silent < SILENCE_SECONDS:
            if self._trouble:
                self._trouble = ""
                self._trace.event("link_back")
                self._log(syslog.LOG_INFO, "the other side is heard again")
            return
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._tell(self._why_silent())
            if self._has_nobody and not work.progress().left:
                work.abort.request(errno.ETIMEDOUT, self._trouble)

    def _look_up_name(self) -> None:
        """A guest gets its name when it has been restored, and loses it when it has been sent."""
        if self._work.role is Role.PAGER:
            self._domain = glance.name(self._work.hypervisor, self._work.domid)

    def _why_silent(self) -> str:
        """What can be found out."""
        self._has_nobody = False
        if self._work.role is Role.PAGE_SERVER:
            return "nothing comes from the destination"
        link = self._work.tunnel.link()
        where = f"{link.address} port {link.port}"
        try:
            socket.create_connection((link.address, link.port), _CONNECT_SECONDS).close()
        except ConnectionRefusedError:
            self._has_nobody = True
            return f"nobody listens at {where}: the page server has ended, or may not be reached"
        except OSError as error:
            return f"{where} cannot be reached: {error.strerror or error}"
        return f"{where} says nothing"

    def _tell(self, trouble: str) -> None:
        if trouble == self._trouble:
            return
        self._trouble = trouble
        self._trace.event("link_silent", trouble=trouble)
        self._log(syslog.LOG_WARNING, trouble)
