"""The drop-in under libxl as it is, with either engine, asked from another shell while it waits for
libxl."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from tests.helper.libxl_side import save_of, started
from tests.hypercalls.build import Release
from tests.hypercalls.conftest import Releases
from tests.hypercalls.helpers import guest, run
from tests.hypercalls.machine import Machine
from tests.waiting import wait_for
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import XCFlags
from xen_save_helper.ipc_schema.control import Ask, Role
from xen_save_helper.toolstack.helpers import control

RAM: Final = (range(0xA0), range(0x100, 0x900))


@pytest.fixture
def release(releases: Releases) -> Release:
    return releases("4.17")


@pytest.mark.parametrize("engine", Engine)
def test_what_an_engine_can_be_told(
    engine: Engine, release: Release, machine: Machine, tmp_path: Path
) -> None:
    domain = guest(machine, 1, RAM)
    directory = tmp_path / "control"
    told: dict[str, Any] = {}

    def steer(_fields: dict[str, Any]) -> int:
        if not told:
            (process,) = wait_for(lambda: control.operations(directory), "it can be asked")
            assert process.role is Role.HELPER_SAVE
            told.update(control.ask(directory, process, Ask.STATUS))
            for ask, fields in ((Ask.SET, {"bandwidth": 1 << 30}), (Ask.PAUSE_SENDING, {})):
                if engine is Engine.LIBXENGUEST:
                    with pytest.raises(OSError, match=r"libxenguest.* has no bandwidth limit"):
                        control.ask(directory, process, ask, **fields)
                else:
                    control.ask(directory, process, ask, **fields)
            if engine is Engine.OWN:
                control.ask(directory, process, Ask.RESUME_SENDING)
            assert control.ask(directory, process, Ask.SET, max_rounds=9)["max_rounds"] == 9
            control.ask(directory, process, Ask.SWITCH, to="stop-and-copy")
        return 0

    def suspend(_fields: dict[str, Any]) -> int:
        domain.suspend()
        return 1

    environment = {
        **release.environment,
        **machine.environment,
        "XEN_SAVE_HELPER_CONTROL": str(directory),
        "XEN_SAVE_HELPER_ENGINE": engine.value,
    }
    with (tmp_path / "stream").open("wb") as stream:
        arguments = save_of(stream.fileno(), 1, xcflags=XCFlags.LIVE)
        with started(arguments, "xen", loader=release.loader, **environment) as libxl:
            done = run(libxl, switch_qemu_logdirty=steer, suspend=suspend)
    assert done.result == (0, 0), done.logged
    assert told["engine"] == engine.value
    assert told["waits_for"] == "the device model: its log-dirty mode"
    assert "precopy policy: stop and copy: asked for while it ran" in done.logged
    assert list(directory.iterdir()) == []
