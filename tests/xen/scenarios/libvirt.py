"""Our helper under libvirt's daemon, which drives the same libxl as `xl` does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from tests.xen.dom0.commands import Ended, Program, run, wait_until
from tests.xen.dom0.guest import COUNTS_SECONDS, RAMDISK, Guest, dom0_kernel
from tests.xen.dom0.lab import COMMAND_SECONDS, DEFAULT_ENGINE, OURS
from tests.xen.scenarios.scenario import Scenario

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

HERE: Final = "xen:///system"
"""The daemon at its usual socket."""
_LEAST_MODEL: Final = Path("/usr/share/libvirt/cpu_map/x86_486.xml")
_USER: Final = "libvirt-qemu"
_START_SECONDS: Final = 90


def save_and_restore(lab: Lab) -> None:
    """`virsh save` and `virsh restore`; the daemon has the environment of helper/README.md."""
    guest = Guest("virtual", "pvh")
    file = lab.directory / "saved"
    daemon = _start_daemon(lab)
    try:
        virsh("create", description(lab.directory, guest), limit=120)
        guest.wait_for_count(1, COUNTS_SECONDS)
        virsh("save", guest.name, file)
        assert guest.name not in lab.domains()
        virsh("restore", file)
        guest.goes_on()
        assert lab.engines_done() == [DEFAULT_ENGINE] * 2, "a save and a restore"
        virsh("destroy", guest.name)
    finally:
        daemon.kill_session()


def _start_daemon(lab: Lab) -> Program:
    """Start the daemon as systemd does with the lines that helper/README.md puts into its unit."""
    make_fit_for_libvirt()
    trace = {"XEN_SAVE_HELPER_EVENTS": str(lab.trace)}
    return started(Program(["libvirtd"], {**OURS.environment, **trace}))


def started(daemon: Program, uri: str = HERE) -> Program:
    """Returns the daemon once it answers at `uri`. Raises AssertionError with what it has said if
    it does not."""

    def answers() -> bool:
        command = ["virsh", "-c", uri, "version"]
        asked = subprocess.run(command, check=False, capture_output=True, timeout=60)
        return asked.returncode == 0

    try:
        wait_until(f"libvirtd answers at {uri}", answers, _START_SECONDS)
    except AssertionError as silent:
        daemon.kill_session()
        raise AssertionError(f"{silent}; it says: {daemon.output[-1500:]}") from None
    return daemon


def make_fit_for_libvirt() -> None:
    """The emulated processor has no VME, which even the least of libvirt's models has; and without
    systemd nobody has created the user that its other driver needs."""
    model = _LEAST_MODEL.read_text()
    _LEAST_MODEL.write_text(model.replace("<feature name='vme'/>", ""))
    if run(["id", _USER]).status:
        assert run(["useradd", "--system", _USER]).status == 0


def description(directory: Path, guest: Guest) -> Path:
    """libvirt's XML for the guest."""
    path = directory / f"{guest.name}.xml"
    path.write_text(
        f"""\
<domain type='xen'>
  <name>{guest.name}</name>
  <memory unit='MiB'>{guest.memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='xenpvh'>xenpvh</type>
    <kernel>{dom0_kernel(guest.kind)}</kernel>
    <initrd>{RAMDISK}</initrd>
    <cmdline>{escape(guest.cmdline)}</cmdline>
  </os>
  <on_crash>destroy</on_crash>
  <devices>
    <console type='pty'/>
  </devices>
</domain>
"""
    )
    return path


def virsh(*arguments: str | Path, uri: str = HERE, limit: float = COMMAND_SECONDS) -> Ended:
    """Run virsh, which must succeed, against the daemon at `uri`."""
    done = run(["virsh", "-c", uri, *arguments], limit)
    assert done.status == 0, f"virsh {arguments[0]}: {done.output}"
    return done


SCENARIOS: Final = (Scenario("libvirt-save-restore-pvh", save_and_restore),)
