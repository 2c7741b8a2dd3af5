"""A controller in a process of its own, for tests that end or stop it.

    python -m tests.toolstack.xl.controller_process HOST DOMID STREAM_FD

Saves the domain with our helper. Prints the helper's pid, then each callback that it answers.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation, XCFlags
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.helpers.request import HelperResult
from xen_save_helper.toolstack.helpers.supervisor import SaveHelper
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.limits import Limits


async def main() -> None:
    directory, domid, stream = sys.argv[1:]
    host = SimulatedHost(Path(directory))
    ended: asyncio.Future[HelperResult] = asyncio.get_running_loop().create_future()

    class Printed(Trace):
        def event(self, event: str, **fields: object) -> None:
            if event == "helper_started":
                print(fields["helper"], flush=True)

    def switch_qemu_logdirty(domid: int, enable: int) -> None:
        host.switch_qemu_logdirty(domid, bool(enable))
        helper.async_callback_done(0)
        print("switch_qemu_logdirty", flush=True)

    helper = SaveHelper(
        HelperRequest(
            Operation.SAVE,
            int(domid),
            int(stream),
            xcflags=XCFlags.LIVE,
            hypervisor=f"sim:{directory}",
        ),
        {"switch_qemu_logdirty": switch_qemu_logdirty, "suspend": lambda: None},
        ended.set_result,
        limits=Limits(),
        trace=Printed("controller"),
    )
    helper.start()
    print(await ended, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
