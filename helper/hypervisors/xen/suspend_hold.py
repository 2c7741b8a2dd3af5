"""Keeps requests to suspend from a domain whose last pages are still to come.

libxl asks a guest to suspend, to shut down or to reboot by writing that word into its node
`control/shutdown` (libxl__domain_pvcontrol), which the guest watches. Once the guest has read it,
it suspends within milliseconds, and nothing can be done about it from outside. So it must not read
it: the node is taken from the guest before it runs. Its watch still fires, since it may read the
parent node (watch_permitted of xenstored), but xenstored refuses it the read, which the handlers of
Linux and FreeBSD take for "nothing is asked". Whoever asks waits meanwhile; libxl does so for a
minute, and then takes its request back.

When the guest is given its node again, its watch fires once more, and it does what it is asked.
"""

from __future__ import annotations

from typing import Final

from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore

_CONTROL_DOMAIN_ALONE: Final = ("n0",)
_TOKEN: Final = "asked"


class XenSuspendHold:
    """interface.SuspendHold of a real domain. Raises OSError: without xenstored, and
    FileNotFoundError for a domain without this node, which libxl makes with the domain."""

    def __init__(self, domid: int) -> None:
        self._path = f"/local/domain/{domid}/control/shutdown"
        self._xenstore = Xenstore()
        try:
            self._permissions = self._xenstore.permissions(self._path)
            if tuple(self._permissions) == _CONTROL_DOMAIN_ALONE:
                # By a pager that died: libxl had made the node the domain's own.
                self._permissions = [f"n{domid}"]
            self._xenstore.set_permissions(self._path, _CONTROL_DOMAIN_ALONE)
            self._xenstore.watch(self._path, _TOKEN)
        except BaseException:
            self._xenstore.close()
            raise

    def fileno(self) -> int:
        return self._xenstore.fileno()

    def asked(self) -> str:
        while True:
            asked = self._xenstore.text(self._path) or ""
            # What came with the answer does not make the descriptor readable any more.
            if not self._xenstore.take_events():
                return asked

    def let_through(self) -> str:
        """Over a connection of its own: the other one may have failed."""
        with Xenstore() as xenstore:
            try:
                asked = xenstore.text(self._path) or ""
                xenstore.set_permissions(self._path, self._permissions)
            except FileNotFoundError:
                return ""  # the domain is gone
        return asked

    def close(self) -> None:
        self._xenstore.close()
