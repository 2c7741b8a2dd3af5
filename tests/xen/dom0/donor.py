"""A guest that never runs, and whose memory goes back to Xen as that of a guest that balloons down:
with all that was in it. Xen scrubs what a domain had only once that is dying."""

from __future__ import annotations

import ctypes
from contextlib import closing
from typing import Final

from tests.xen.dom0.commands import run
from tests.xen.dom0.guest import Guest
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.helper.hypervisors.xen.domain import XenDomain
from xen_save_helper.helper.hypervisors.xen.engine_abi import ENGINE_ABIS
from xen_save_helper.helper.hypervisors.xen.libraries import abi_version, load, versioned
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl
from xen_save_helper.ipc_schema.streams.pfns import run_of

LEFTOVER: Final = b"\xa5left behind by another guest...".ljust(32, b".")
_PAGE: Final = LEFTOVER * (PAGE_SIZE // len(LEFTOVER))
_ORDER: Final = 9
_AT_ONCE: Final = 1 << _ORDER
"""Pages of 2 MiB, in which a restore gives a guest its memory."""
_DECREASE: Final = "xc_domain_decrease_reservation_exact"


class Donor:
    """The guest, from `xl create` on; it lives until it is destroyed by its name."""

    def __init__(self, name: str, memory: int) -> None:
        """`memory`, in MiB, is all given back, but for the first 2 MiB."""
        guest = Guest(name, "pvh", memory)
        done = run(["xl", "create", "-p", guest.configure()], limit=120)
        assert done.status == 0, f"xl create: {done.output}"
        self.name = name
        (row,) = (row for row in run(["xl", "list", name]).output.splitlines() if name in row)
        self._domid = int(row.split()[1])
        self._firsts = range(_AT_ONCE, guest.octets // PAGE_SIZE, _AT_ONCE)
        self._has = True

    def give_back(self) -> None:
        """Write into all memory, and give it back. A second time it is taken from Xen first."""
        with closing(XenDomain(self._domid)) as domain:
            for first in self._firsts:
                pfns = run_of(first, _AT_ONCE)
                if not self._has:
                    domain.populate_physmap_exact(run_of(first, 1), _ORDER)
                (view,) = domain.foreign_map(pfns, writable=True)
                view[:] = _PAGE * _AT_ONCE
                domain.foreign_unmap([view])
        self._decrease()

    def leftovers(self) -> float:
        """The share of the memory that Xen gives out next, in pages of 2 MiB, which holds what was
        left in it. It is given back as it is."""
        found = 0
        with closing(XenDomain(self._domid)) as domain:
            for first in self._firsts:
                domain.populate_physmap_exact(run_of(first, 1), _ORDER)
                (view,) = domain.foreign_map(run_of(first, _AT_ONCE))
                found += sum(
                    view[at : at + len(LEFTOVER)] == LEFTOVER
                    for at in range(0, len(view), PAGE_SIZE)
                )
                domain.foreign_unmap([view])
        self._decrease()
        return found / (len(self._firsts) * _AT_ONCE)

    def _decrease(self) -> None:
        """xc_domain_decrease_reservation_exact, page by page as a guest's balloon does."""
        name = versioned("libxenctrl")
        library = load(name, {_DECREASE: ENGINE_ABIS[abi_version()].control[_DECREASE]})
        with closing(Xenctrl()) as xenctrl:
            for first in self._firsts:
                pfns = (ctypes.c_uint64 * _AT_ONCE)(*run_of(first, _AT_ONCE))
                done = library.xc_domain_decrease_reservation_exact(
                    xenctrl.handle, self._domid, _AT_ONCE, 0, pfns
                )
                assert not done, f"{_DECREASE}: {ctypes.get_errno()}"
        self._has = False
