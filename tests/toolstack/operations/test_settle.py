"""A guest comes to rest even if its log-dirty mode cannot be turned off; if it does not come to
rest, that is reported."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import HostFactory
from tests.helper.hypervisors.simulated.guests import suspended
from tests.toolstack.two_hosts import MEMORY, Side, run
from xen_save_helper.helper.hypervisors.simulated.domain import SimulatedDomain
from xen_save_helper.ipc_schema.streams import xl_handshake
from xen_save_helper.ipc_schema.streams.xl_handshake import Verdict
from xen_save_helper.toolstack.commands.common import CommandError, guest_of
from xen_save_helper.toolstack.hosts.interface import DomainSummary, GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.operations.settle import resume_for_sure, row_of_domain
from xen_save_helper.toolstack.xl import save_file
from xen_save_helper.toolstack.xl.migrate import migrate
from xen_save_helper.toolstack.xl.migrate_options import CommandDestination, MigrateOptions
from xen_save_helper.toolstack.xl.outcome import Outcome


class DeafDeviceModel(SimulatedHost):
    """Its device models refuse to turn their log-dirty mode off."""

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> None:
        if not enable:
            raise OSError(errno.EIO, "the device model is deaf")


@pytest.fixture
def source(host_factory: HostFactory) -> Side:
    return Side(DeafDeviceModel(host_factory("source").directory))


def test_a_failed_save_resumes_the_guest_all_the_same(source: Side, tmp_path: Path) -> None:
    domid = source.host.create_guest("g", MEMORY, "random", type="hvm")
    lines: list[str] = []
    ctx = replace(source.ctx, log=lambda _level, _context, text: lines.append(text))
    with pytest.raises(save_file.SaveFileError, match="the guest is running here"):
        run(save_file.save(ctx, domid, Path("/dev/full")))
    assert source.state() is GuestState.RUNNING
    assert any("the device model is deaf" in line for line in lines)
    assert [name for name in os.listdir(source.host.state_dir) if "journal" in name] == []


def test_a_failed_migration_does_so_too_and_warns(source: Side) -> None:
    domid = source.host.create_guest("g", MEMORY, "random", type="hvm")
    banner = r"printf 'xl migration receiver ready, send binary domain data.\n'"
    said = xl_handshake.encode_verdict(Verdict(0, "")) + xl_handshake.RECEIVING.data
    words = said.decode().replace("\0", r"\0")
    to = CommandDestination(f'{banner}; printf "{words}"; head -c 100000 >/dev/null; exit 3')
    result = run(migrate(source.ctx, domid, to, MigrateOptions()))
    assert result.outcome is Outcome.RUNNING_AT_SOURCE, result
    assert any("the device model is deaf" in warning for warning in result.warnings)
    assert source.state() is GuestState.RUNNING


class Unresumable(SimulatedHost):
    def resume(self, domid: int) -> None:
        """Claim to have done it."""


def test_a_guest_that_stays_suspended_is_not_resumed_for_ever(host_factory: HostFactory) -> None:
    host = Unresumable(host_factory("host").directory)
    domid = host.create_guest("g", MEMORY, "random")
    request = host.suspend_request(domid)
    try:
        suspended(request)
    finally:
        request.close()
    with pytest.raises(OSError, match=f"domain {domid} is still suspended"):
        resume_for_sure(host, domid, watch=1.0)


class Destroying(SimulatedHost):
    """Its domains are being destroyed, as on Xen while somebody maps their pages."""

    def domains(self) -> list[DomainSummary]:
        return []

    def summary(self, domid: int) -> DomainSummary:
        raise ProcessLookupError(errno.ESRCH, f"there is no domain {domid}")

    def domain(self, domid: int) -> SimulatedDomain:
        domain = super().domain(domid)
        info = domain.getinfo()._replace(dying=True)
        domain.getinfo = lambda: info
        return domain


def test_a_domain_that_is_being_destroyed_is_not_unknown(host: SimulatedHost) -> None:
    domid = host.create_guest("g", MEMORY, "idle")
    destroying = Destroying(host.directory)
    with pytest.raises(ProcessLookupError, match=f"domain {domid} is being destroyed"):
        row_of_domain(destroying, domid)
    with pytest.raises(
        CommandError, match=f"domain {domid} is being destroyed; guests on this host"
    ):
        guest_of(destroying, str(domid))
    with pytest.raises(CommandError, match="there is no domain 77; guests on this host: none"):
        guest_of(destroying, "77")
