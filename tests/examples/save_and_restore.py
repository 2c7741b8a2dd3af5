"""Save a guest into a file on one host, and restore it from there on another.

python tests/examples/save_and_restore.py
"""

import asyncio
import tempfile
from pathlib import Path

from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.toolstack import Context, domain_create_restore, domain_suspend
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost


async def save_and_restore(here: str, there: str, name: str, file: Path) -> int:
    """Returns the guest's domid on the host `there`."""
    source, destination = Context.open(here), Context.open(there)
    domid = source.host.find(name)
    config = source.host.config(domid)
    with file.open("wb") as image:
        saved = await domain_suspend(source, domid, image.fileno())
    if saved.rc:
        if saved.suspended:
            source.host.resume(domid)
        raise RuntimeError(saved.reason)
    # From here on the guest is in the file: it must not run here any more.
    source.host.destroy(domid)
    with file.open("rb") as image:
        restored = await domain_create_restore(destination, config, name, image.fileno())
    if restored.domid is None:
        raise RuntimeError(restored.reason)
    destination.host.unpause(restored.domid)
    return restored.domid


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        here, there = Path(directory, "here"), Path(directory, "there")
        create_host(here)
        create_host(there)
        SimulatedHost(here).create_guest("web", 16 << 20, "random")
        file = Path(directory, "image")
        domid = asyncio.run(save_and_restore(f"sim:{here}", f"sim:{there}", "web", file))
        report = SimulatedHost(there).verify(domid, 30)
        print(f"web runs at its destination, memory as it was: {report.memory_ok}")
        SimulatedHost(there).destroy(domid)


if __name__ == "__main__":
    main()
