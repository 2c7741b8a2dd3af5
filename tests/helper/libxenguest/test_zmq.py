"""The engine under our own controller, over ZeroMQ."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.toolstack.helpers.running_helpers import Reaction, Run, run_helper
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation, StreamType, XCFlags
from xen_save_helper.toolstack.helpers.request import OwnHelper
from xen_save_helper.toolstack.limits import Limits

PV_DOMID = 2


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def run(
    xen: str,
    stream: Path,
    mode: str,
    domid: int,
    reactions: dict[str, Reaction] | None = None,
    hypervisor: str = "xen",
) -> Run:
    """A live save; `rounds` finds 300 dirty pages after each."""
    dirty = " ".join(["300"] * 9)
    variables = (f"LD_LIBRARY_PATH={xen}", f"XEN_PEER={mode}", f"XEN_PEER_DIRTY={dirty}")
    program = OwnHelper(
        ("env", *variables, sys.executable, "-P", "-m", "xen_save_helper.helper.main")
    )
    fd = os.open(stream, os.O_WRONLY | os.O_CREAT)
    try:
        request = HelperRequest(
            Operation.SAVE,
            domid,
            fd,
            xcflags=XCFlags.LIVE,
            hypervisor=hypervisor,
            engine="libxenguest",
        )
        return run_helper(program, reactions, request=request)
    finally:
        os.close(fd)


def logged(run: Run) -> str:
    return "\n".join(fields["formatted"] for name, fields in run.heard if name == "log")


def test_a_save(each_version: str, tmp_path: Path) -> None:
    done = run(each_version, tmp_path / "stream", "plain", 7)
    assert done.result is not None
    assert (done.result.rc, done.result.retval, done.result.reason) == (0, 0, "")
    assert [name for name in done.names if name not in ("log", "progress")] == [
        "switch_qemu_logdirty",
        "suspend",
    ]
    assert (tmp_path / "stream").read_bytes() == b"the stream"


def test_the_controllers_policy_and_what_the_stream_carried(xen: str, tmp_path: Path) -> None:
    def three_rounds(run: Run) -> int:
        return int(run.heard[-1][1]["iteration"] == 3)

    reactions: dict[str, Reaction] = {"precopy_policy": three_rounds}
    done = run(xen, tmp_path / "stream", "rounds", PV_DOMID, reactions)
    asked = [tuple(fields.values()) for name, fields in done.heard if name == "precopy_policy"]
    assert asked == [
        (0, 0, 2048),
        (1, 2048, -1),
        (1, 2048, 300),
        (2, 2348, -1),
        (2, 2348, 300),
        (3, 2648, -1),
    ]
    assert done.result is not None
    assert (done.result.rc, done.result.retval) == (0, 0)
    statistics = done.result.statistics
    assert statistics is not None
    assert statistics.bytes == (tmp_path / "stream").stat().st_size
    # One is that of the three pages that every save of the peer reports.
    assert statistics.rounds == 1 + 3


def test_libxcs_failure_is_told(xen: str, tmp_path: Path) -> None:
    done = run(xen, tmp_path / "stream", "fail", PV_DOMID)
    assert done.result is not None
    assert (done.result.retval, done.result.errnoval) == (-1, errno.ENOSPC)
    assert done.result.completed
    assert "xc_domain_save failed: Failed to write page data to stream" in logged(done)


def test_the_engine_needs_xen(xen: str, tmp_path: Path) -> None:
    done = run(xen, tmp_path / "stream", "plain", 7, hypervisor=f"sim:{tmp_path}")
    assert done.result is not None
    assert (done.result.retval, done.result.errnoval) == (-1, errno.ENOTSUP)
    assert "engine libxenguest works on the hypervisor xen only" in logged(done)


def test_a_checkpointed_stream_stands_still_for_as_long_as_its_primary_lives(
    xen: str, tmp_path: Path
) -> None:
    """None of our limits makes libxc take a silent primary for a dead one."""
    near, far = socket.socketpair()
    limits = Limits(stream_stall=0.1, suspend=0.1, callback=0.1, helper_start=20)
    checkpoints = 0

    def checkpoint(run: Run) -> None:
        nonlocal checkpoints
        checkpoints += 1
        run.helper.async_callback_done(1)
        loop = asyncio.get_running_loop()
        if checkpoints < 3:
            loop.call_later(1.5, far.sendall, b"the stream")
        else:
            far.close()

    program = OwnHelper(
        (
            "env",
            f"LD_LIBRARY_PATH={xen}",
            "XEN_PEER=checkpoints",
            sys.executable,
            "-P",
            "-m",
            "xen_save_helper.helper.main",
        )
    )
    with near, far:
        far.sendall(b"the stream")
        request = HelperRequest(
            Operation.RESTORE,
            7,
            near.fileno(),
            stream_type=StreamType.REMUS,
            hypervisor="xen",
            engine="libxenguest",
        )
        reactions: dict[str, Reaction] = {
            "log": lambda _run: None,
            "checkpoint": checkpoint,
            "restore_results": lambda _run: None,
        }
        done = run_helper(program, reactions, request=request, limits=limits)
    assert checkpoints == 3
    assert done.result is not None
    assert (done.result.rc, done.result.retval, done.result.reason) == (0, 0, "")
    assert "Remus Failover" in logged(done)
