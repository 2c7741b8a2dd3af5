"""Two guests that arrive at once, on a host where xl makes room for them: it holds its lock while a
guest is restored, and does not read the stream of a second one until then."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import wait_until
from tests.xen.dom0.gate import Gate
from tests.xen.dom0.lab import COMMAND_SECONDS, receive_command
from tests.xen.scenarios.scenario import BOOKWORM, NONE, Scenario

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

XL_CONF: Final = Path("/etc/xen/xl.conf")
_AUTOBALLOON: Final = 'autoballoon="on"\n'
"""The default if Xen's command line has no dom0_mem, as on this machine: only then does xl take its
lock."""
_HELD_OCTETS: Final = 16 << 20
_MORE_SECONDS: Final = 30.0
"""After the first warning, which comes when the stream has stood still for a minute."""
_WARNING: Final = "warning: the stream has stood still for "


def second_waits(lab: Lab) -> None:
    """The first guest's stream is held for 90 s, and the second one's with it: both helpers report
    that after a minute and give nothing up, and both guests are migrated."""
    first, second = lab.guest("pvh"), lab.guest("pvh")
    before = {guest.name: lab.domid(guest) for guest in (first, second)}
    conf = XL_CONF.read_text() if XL_CONF.exists() else ""
    gate = Gate(lab.directory / "gate")
    try:
        XL_CONF.write_text(f"{conf}\n{_AUTOBALLOON}")
        holding = lab.start_migrate(first, receive=gate.command(_HELD_OCTETS, receive_command()))
        wait_until("the first one's stream is held", lambda: gate.holds, COMMAND_SECONDS)
        began = time.monotonic()
        waiting = lab.start_migrate(second)
        wait_until("it says that it waits", lambda: _WARNING in waiting.output, COMMAND_SECONDS)
        lab.figure("warned after s", round(time.monotonic() - began))
        assert not waiting.wait(_MORE_SECONDS), "the second one did not wait for the first"
        gate.open()
        for program in (holding, waiting):
            done = program.end(COMMAND_SECONDS)
            assert done.status == 0, "xl migrate failed"
            assert _WARNING in done.output
    finally:
        XL_CONF.write_text(conf)
    after = lab.domains()
    assert set(after) == set(before)
    for guest in (first, second):
        assert after[guest.name].domid != before[guest.name]
        guest.goes_on()


SCENARIOS: Final = (Scenario("xl-second-incoming-waits-pvh", second_waits, NONE, BOOKWORM),)
