"""A live migration with a policy of one's own: precopy if it converges, else postcopy.

python tests/examples/own_policy.py
"""

import asyncio
import socket
import tempfile
from pathlib import Path

from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.toolstack import (
    Context,
    MemoryStrategy,
    PostcopyTransitioned,
    PrecopyLimits,
    RestoreResult,
    SaveResult,
    domain_create_restore,
    domain_live_migrate,
)
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

BANDWIDTH = 100 << 20
"""Bytes per second that the link may carry."""
CONVERGES = PrecopyLimits(dirty_threshold=50, max_downtime_ms=5, abort_after=3)
"""The rest may take 5 ms to send; give up after three rounds that do not get there."""
ONE_ROUND = PrecopyLimits(max_rounds=1)


async def attempt(
    source: Context,
    destination: Context,
    name: str,
    strategy: MemoryStrategy,
    precopy: PrecopyLimits,
) -> tuple[SaveResult, RestoreResult]:
    domid = source.host.find(name)
    config = source.host.config(domid)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = ours.fileno()
        return await asyncio.gather(
            domain_live_migrate(
                source, domid, fd, 0, fd, strategy, precopy=precopy, bandwidth=BANDWIDTH
            ),
            domain_create_restore(destination, config, name, theirs.fileno(), theirs.fileno()),
        )


async def migrate(source: Context, destination: Context, name: str) -> str:
    """Migrate the guest; returns the way it went. Raises RuntimeError if it did not go."""
    domid = source.host.find(name)
    way = MemoryStrategy.DEFAULT
    saved, restored = await attempt(source, destination, name, way, CONVERGES)
    if saved.rc and not saved.suspended:
        # Precopy was given up, and the guest has never stopped.
        way = MemoryStrategy.POSTCOPY
        saved, restored = await attempt(source, destination, name, way, ONE_ROUND)
    if saved.rc or restored.rc or restored.domid is None:
        if saved.postcopy_transitioned is not PostcopyTransitioned.DONE:
            # It cannot have run there, so it may run on here.
            if restored.domid is not None:
                destination.host.destroy(restored.domid)
            source.host.resume(domid)
        raise RuntimeError(saved.reason or restored.reason)
    source.host.destroy(domid)
    if restored.postcopy_resumed:
        return "postcopy"
    destination.host.unpause(restored.domid)
    return "precopy"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        here, there = Path(directory, "here"), Path(directory, "there")
        create_host(here)
        create_host(there)
        source, destination = Context.open(f"sim:{here}"), Context.open(f"sim:{there}")
        for name, workload in (("calm", "idle"), ("busy", "write-heavy")):
            SimulatedHost(here).create_guest(name, 32 << 20, workload)
            print(f"{name} went by {asyncio.run(migrate(source, destination, name))}")
        for row in destination.host.domains():
            assert destination.host.verify(row.domid, 30).memory_ok
            destination.host.destroy(row.domid)


if __name__ == "__main__":
    main()
