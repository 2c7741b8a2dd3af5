"""Postcopy under libvirt's daemons, both unmodified: `virsh migrate` leaves pages behind, and a
page server and a pager bring them.

Two daemons run on the one Xen. libvirt's driver for it refuses a destination only if it has a
running domain of the same name or UUID, so the second daemon has directories of its own, in a mount
namespace, and each migration gives the guest another name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import Program, wait_until
from tests.xen.dom0.guest import CONSOLES, COUNTS_SECONDS, Guest
from tests.xen.dom0.lab import OURS
from tests.xen.scenarios.libvirt import (
    HERE,
    description,
    make_fit_for_libvirt,
    started,
    virsh,
)
from tests.xen.scenarios.scenario import BOOKWORM, NONE, Scenario
from tests.xen.scenarios.toolstack import succeeds

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

_PAGES_SECONDS: Final = 240
_OWN: Final = {
    "run": Path("/run/libvirt"),
    "lib": Path("/var/lib/libvirt"),
    "cache": Path("/var/cache/libvirt"),
    "log": Path("/var/log/libvirt"),
}
"""The directories that each daemon has to itself."""
_XEN: Final = Path("/etc/xen")


class _Moving(Guest):
    """A guest that gets a new name with each migration."""

    NAMES: Final = ("virtual", "virtual-there", "virtual-back")

    def _logs(self) -> list[Path]:
        return [CONSOLES / f"guest-{name}.log" for name in self.NAMES]


def there_and_back(lab: Lab) -> None:
    """One daemon has the settings in its environment, as from its unit; the other has only the
    variable that names the helper there, and the settings in /etc/xen/save-helper.conf. The guest
    goes from the first to the second over a socket between them, as by default, and back through
    libvirt's own connection (--tunnelled). It counts on, finds its memory as it was, and its daemon
    can save it."""
    first, second, third = _Moving.NAMES
    guest = _Moving(first, "pvh")
    with _by_environment(lab), _by_file(lab) as (there, here_from_there):
        virsh("create", description(lab.directory, guest), limit=120)
        guest.wait_for_count(1, COUNTS_SECONDS)
        direct = ("--migrateuri", "tcp://127.0.0.1")
        virsh("migrate", "--live", first, there, *direct, "--dname", second)
        _goes_on_as(lab, guest, second, there)
        tunnelled = ("--p2p", "--tunnelled")
        virsh(
            *("migrate", "--live", second, here_from_there, *tunnelled, "--dname", third), uri=there
        )
        _goes_on_as(lab, guest, third, HERE)
        # A receiver's helper says so twice: of the guest's state, and of its last page.
        done = {event["pid"] for event in lab.events("complete") if not event["retval"]}
        assert len(done) == 4, "two at each end"
        file = lab.directory / "saved"
        virsh("save", third, file)
        virsh("restore", file)
        guest.goes_on()
        virsh("destroy", third)


def _goes_on_as(lab: Lab, guest: Guest, name: str, uri: str) -> None:
    """Once it has its last page, it is the only domain, with this name, at the daemon at `uri`."""
    kept = [event["pages"] for event in lab.events("pages_kept")]
    lab.figure("pages left behind", kept)
    assert len(kept) == _Moving.NAMES.index(name), "no postcopy"
    assert kept[-1]
    assert "running" in virsh("domstate", name, uri=uri).output
    succeeds("postcopy", "wait", "--timeout", str(_PAGES_SECONDS))
    wait_until("the pager ends", lambda: not lab.running("xen_save_helper.helper"), 60)
    wait_until("the old domain is gone", lambda: list(lab.domains()) == [name], 30)
    assert virsh("list", "--all", "--name", uri=uri).output.split() == ["Domain-0", name]
    lab.figure("faults", sum(event["faults"] for event in lab.events("postcopy_faults")))
    guest.goes_on()


def _settings(lab: Lab) -> dict[str, str]:
    return {
        "XEN_SAVE_HELPER_EVENTS": str(lab.trace),
        "XEN_SAVE_HELPER_POSTCOPY": "127.0.0.1",
        "XEN_SAVE_HELPER_MAX_ITERATIONS": "1",
        "XEN_SAVE_HELPER_DIRTY_THRESHOLD": "0",
    }


@contextmanager
def _by_environment(lab: Lab) -> Iterator[None]:
    make_fit_for_libvirt()
    daemon = started(Program(["libvirtd"], {**OURS.environment, **_settings(lab)}))
    try:
        yield
    finally:
        daemon.kill_session()
        _tell(lab, "first", daemon, Path("/var/log/libvirt"))


@contextmanager
def _by_file(lab: Lab) -> Iterator[tuple[str, str]]:
    """The URI of this daemon, and that under which it finds the first one."""
    own = lab.directory / "second"
    binds = {Path("/run/libvirt"): own / "first"}
    for name, target in _OWN.items():
        binds[own / name] = target
        target.mkdir(parents=True, exist_ok=True)
    for directory in (own / "first", *(own / name for name in _OWN)):
        directory.mkdir(parents=True)
    shutil.copytree(_XEN, own / "xen", symlinks=True)
    lines = (f"{name}={value}\n" for name, value in _settings(lab).items())
    (own / "xen" / "save-helper.conf").write_text("".join(lines))
    binds[own / "xen"] = _XEN
    mounts = [f"mount --bind {directory} {on}" for directory, on in binds.items()]
    script = " && ".join([*mounts, f"exec libvirtd --pid-file {own}/pid"])
    uri = _at(own / "run")
    program = started(Program(["unshare", "--mount", "sh", "-c", script], OURS.environment), uri)
    try:
        yield uri, _at(own / "first")
    finally:
        program.kill_session()
        _tell(lab, "second", program, own / "log")


def _tell(lab: Lab, name: str, daemon: Program, logs: Path) -> None:
    """For a reader of a scenario that has failed: the daemon's output, and its libxl's logs."""
    daemon.tell_unfinished()
    kept = lab.results / "logs"
    kept.mkdir(exist_ok=True)
    for path in logs.glob("libxl/*.log"):
        shutil.copy(path, kept / f"{name}-{path.name}")


def _at(directory: Path) -> str:
    return f"xen+unix:///system?socket={directory}/libvirt-sock"


SCENARIOS: Final = (Scenario("libvirt-postcopy-pvh", there_and_back, NONE, BOOKWORM, shadow=True),)
