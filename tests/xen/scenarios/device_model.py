"""An HVM guest with a QEMU that does not take saved state the way libxl passes it. Our wrapper
hands the state over; without it a guest is refused before the first page. This needs a Debian that
has such a QEMU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import run
from tests.xen.dom0.guest import Guest
from tests.xen.dom0.lab import COMMAND_SECONDS, OURS, receive_command
from tests.xen.scenarios import toolstack
from tests.xen.scenarios.scenario import Scenario
from xen_save_helper.helper.hypervisors.xen.restored_model import SETTING

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

WRAPPER: Final = "/usr/local/bin/xen-save-helper-qemu"


class WrappedGuest(Guest):
    """A guest whose configuration names the wrapper, as helper/README.md describes."""

    def _config(self) -> str:
        named = f'device_model_override = "{WRAPPER}"\ndevice_model_version = "qemu-xen"\n'
        return super()._config() + named


def wrapped_by_configuration(lab: Lab) -> None:
    """xl saves, restores and migrates the guest, with our helper at each end; so does our
    controller."""
    guest = WrappedGuest("wrapped", "hvm").create()
    file = lab.directory / "saved"
    told: dict[str, str | None] = {SETTING: WRAPPER}
    lab.save(guest, file)
    lab.restore(guest, file, env=told)
    lab.migrate(guest, env=told)
    toolstack.migrate(lab, guest, toolstack.RECEIVE)
    toolstack.nothing_is_left()


def wrapped_where_it_is_needed(lab: Lab) -> None:
    """A guest whose configuration does not name the wrapper: xl with our helper refuses it before
    the first page, in a restore and in a migration, after which it runs on. Our controller has the
    wrapper start QEMU."""
    guest = lab.guest("hvm")
    file = lab.directory / "saved"
    domid = lab.domid(guest)
    done = lab.start_migrate(guest, receive=receive_command(OURS)).end(COMMAND_SECONDS)
    assert done.status != 0
    assert "takes no saved state as libxl gives it" in done.output
    assert f'device_model_override="{WRAPPER}"' in done.output
    lab.assert_runs_on(guest, domid)
    toolstack.save(lab, guest, file)
    refused = lab.xl(["restore", file], OURS, limit=COMMAND_SECONDS)
    assert refused.status != 0
    assert "takes no saved state as libxl gives it" in refused.output
    assert lab.domains() == {}
    toolstack.restore(lab, guest, file)
    assert device_model_of(guest) == WRAPPER
    toolstack.migrate(lab, guest, toolstack.RECEIVE)
    assert device_model_of(guest) == WRAPPER
    toolstack.nothing_is_left()


def device_model_of(guest: Guest) -> str:
    """The device model that the guest's stored configuration names."""
    (described,) = json.loads(run(["xl", "list", "-l", guest.name]).output)
    return str(described["config"]["b_info"].get("device_model", ""))


SCENARIOS: Final = (
    Scenario("device-model-wrapped-hvm", wrapped_by_configuration, ("sid",), limit=900),
    Scenario("device-model-needed-hvm", wrapped_where_it_is_needed, ("sid",), limit=900),
)
