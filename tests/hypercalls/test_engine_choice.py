"""Which engine works on which guest of a real Xen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hypercalls.build import Release
from tests.hypercalls.helpers import guest, restore, save
from tests.hypercalls.machine import Machine
from xen_save_helper.ipc_schema.channel.helper_request import Engine

_DOMINF_HVM_GUEST = 1 << 1


@pytest.mark.parametrize("engine", Engine)
def test_pv_guests_are_libxenguests(
    release: Release, machine: Machine, tmp_path: Path, engine: Engine
) -> None:
    """Also if our own engine is asked for. The stand-in has no PV guests, so an HVM one is not
    restored into it."""
    assert save(tmp_path / "stream", guest(machine, 1, [range(16)]), machine, release).retval == 0
    domain = machine.domain(2)
    domain.state.flags &= ~_DOMINF_HVM_GUEST
    done = restore(tmp_path / "stream", domain, machine, release, engine)
    assert done.retval == -1
    told = "libxenguest works on a PV domain, as 2 is" in done.logged
    assert told == (engine is Engine.OWN)


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("own", "its own engine saves and restores HVM and PVH guests, libxenguest PV guests and "
                "the streams of Remus and COLO"),
        ("libxenguest", "libxenguest saves and restores all guests"),
        ("", "its own engine saves and restores HVM and PVH guests, libxenguest PV guests and "
             "the streams of Remus and COLO"),
    ],
)  # fmt: skip
def test_the_version_says_what_works_on_what(engine: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xen_save_helper.helper.main", "--version"],
        env={"XEN_SAVE_HELPER_ENGINE": engine},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.endswith(f"; {says}\n")
