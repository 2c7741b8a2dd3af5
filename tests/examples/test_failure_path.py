"""What a toolstack does when its helper fails, tested with the package's pytest plugin.

python -m pytest tests/examples/test_failure_path.py
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.toolstack import Context, Error, domain_suspend
from xen_save_helper.toolstack.faults.helper_program import FaultyHelper
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

XEN_TOOLSTACK = Path(sys.executable).with_name("xen-toolstack")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    create_host(tmp_path / "host")
    host = SimulatedHost(tmp_path / "host")
    host.create_guest("web", 8 << 20, "random")
    yield host
    for domain in host.domains():
        host.destroy(domain.domid)


@pytest.mark.xen_faults("phase.stop-and-copy=kill")
def test_a_user_of_our_api(
    host: SimulatedHost, xen_save_helper: FaultyHelper, tmp_path: Path
) -> None:
    context = Context.open(f"sim:{host.directory}", program=xen_save_helper.program)
    with (tmp_path / "image").open("wb") as image:
        saved = asyncio.run(domain_suspend(context, host.find("web"), image.fileno()))
    assert saved.rc is Error.FAIL
    assert saved.suspended  # and what follows from it is the caller's part
    assert xen_save_helper.fired == ["phase.stop-and-copy=kill"]


@pytest.mark.xen_faults("suspend:before-answer=exit(3)")
def test_a_user_of_libxl(
    host: SimulatedHost, xen_save_helper: FaultyHelper, tmp_path: Path
) -> None:
    # On Xen: ["xl", "save", ...] with LIBXL_SAVE_HELPER in its environment.
    command = [str(XEN_TOOLSTACK), "save", "web", str(tmp_path / "image")]
    command += ["--host", str(host.directory), "--helper", str(xen_save_helper.executable)]
    ended = subprocess.run(command, check=False)
    assert ended.returncode == 1
    assert [domain.state.value for domain in host.domains()] == ["running"]
    assert xen_save_helper.fired == ["suspend:before-answer=exit(3)"]
