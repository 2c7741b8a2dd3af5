"""A real systemd, in namespaces of its own: what a service has started ends with it, or not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.unavailable import unavailable
from tests.waiting import gone, wait_for
from xen_save_helper.helper.postcopy_link.scope import BOOTED

_SYSTEMD: Final = "/lib/systemd/systemd"
_SETUP: Final = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/units
cat > /run/units/tiny.target <<END
[Unit]
DefaultDependencies=no
Requires=dbus.service
After=dbus.service
END
cat > /run/units/dbus.socket <<END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
END
cat > /run/units/dbus.service <<END
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation
END
export container=lxc SYSTEMD_UNIT_PATH=/run/units
exec /lib/systemd/systemd --system --unit=tiny.target --log-target=null
"""
_OUTLIVES: Final = """\
import os, sys, time
from xen_save_helper.helper.postcopy_link.scope import enter_scope
if len(sys.argv) > 2:
    why_not = enter_scope(sys.argv[2], "a test's")
    assert not why_not, why_not
    assert enter_scope(sys.argv[2], "taken").startswith("systemd: ")
with open(sys.argv[1] + ".new", "w") as file:
    file.write(open("/proc/self/cgroup").read())
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


class Systemd:
    """The one that runs as `pid`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def run(self, *command: str) -> str:
        inside = ["nsenter", "-t", str(self._pid), "-m", "-p", *command]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, unit: str, command: Sequence[str]) -> None:
        how = ("--property=Type=exec", "--property=DefaultDependencies=no")
        self.run("systemd-run", "--quiet", f"--unit={unit}", *how, *command)


def cgroups() -> set[Path]:
    return {path.parent for path in Path("/sys/fs/cgroup").glob("*/*/cgroup.procs")}


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    """This machine's, if it has booted with it."""
    tools = ("unshare", "nsenter", "systemd-run", "busctl", "dbus-daemon", _SYSTEMD)
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        unavailable(f"no {', '.join(missing)}: install systemd and dbus")
    if os.geteuid():
        unavailable("a systemd of its own needs root")
    if os.path.isdir(BOOTED):
        yield Systemd(1)
        return
    before = cgroups()
    namespaces = ("--fork", "--pid", "--mount", "--uts", "--ipc", "--mount-proc", "--kill-child")
    outside = subprocess.Popen(
        ["unshare", *namespaces, "bash", "-ec", _SETUP],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process = psutil.Process(outside.pid)
        (manager,) = wait_for(process.children, "systemd starts")
        made = Systemd(manager.pid)
        wait_for(lambda: _answers(made), "systemd answers", 60)
        yield made
    finally:
        outside.send_signal(signal.SIGKILL)
        outside.wait()
        wait_for(lambda: gone(manager.pid), "it has gone")
        for new in cgroups() - before:
            for path in sorted(new.glob("**/"), reverse=True):
                path.rmdir()


def _answers(systemd: Systemd) -> bool:
    try:
        systemd.run("busctl", "--system", "status", "org.freedesktop.systemd1")
    except AssertionError:
        return False
    return True


def pid_of(mark: Path) -> int:
    (found,) = (
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(mark) in (process.info["cmdline"] or ())
    )
    return found


def test_what_is_in_a_scope_outlives_the_service_that_started_it(
    systemd: Systemd, tmp_path: Path
) -> None:
    in_scope, not_so = tmp_path / "in scope", tmp_path / "not so"
    script = tmp_path / "script"
    script.write_text(_OUTLIVES)
    one = f"'{sys.executable}' '{script}'"
    both = f"{one} '{in_scope}' our-pager-7 & {one} '{not_so}' & wait"
    systemd.start("libvirtd", ["bash", "-c", both])
    wait_for(lambda: in_scope.exists() and not_so.exists(), "both work")
    assert "/our-pager-7.scope" in in_scope.read_text()
    assert "/libvirtd.service" in not_so.read_text()
    outliving, ending = pid_of(in_scope), pid_of(not_so)
    systemd.run("systemctl", "stop", "libvirtd")
    wait_for(lambda: gone(ending), "the other has ended")
    assert not gone(outliving)
    os.kill(outliving, signal.SIGKILL)
    wait_for(lambda: "our-pager-7" not in systemd.run("systemctl", "list-units"), "it is forgotten")
