"""The helper as a process, started as libxl starts it, with a C library in place of Xen's."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import trace_lines
from tests.helper.libxl_side import Libxl, cbflags, save_of, started
from tests.streams import read_cut
from tests.waiting import until_blocked
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import (
    Dialect,
    Operation,
    StreamType,
    XentoollogLevel,
)
from xen_save_helper.ipc_schema.streams.static_data import Policy, policy_of

DOMID = 7
PV_DOMID = 2


@pytest.fixture
def stream(no_leaks: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The helper's end and ours."""
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(10)
        yield near, far


@contextmanager
def on_xen(
    arguments: HelperArguments, libraries: str, mode: str = "plain", **environment: str
) -> Iterator[Libxl]:
    environment = {
        "LD_LIBRARY_PATH": libraries,
        "XEN_PEER": mode,
        "XEN_SAVE_HELPER_ENGINE": "libxenguest",
        **environment,
    }
    with started(arguments, "xen", **environment) as libxl:
        yield libxl


def restoring(fd: int, *callbacks: str, stream_type: StreamType = StreamType.PLAIN) -> Any:
    request = HelperRequest(
        operation=Operation.RESTORE,
        domid=DOMID,
        io_fd=fd,
        stream_type=stream_type,
        store_evtchn=11,
        store_domid=12,
        console_evtchn=13,
        console_domid=14,
    )
    return HelperArguments(request, Dialect.MAINLINE, cbflags(Dialect.MAINLINE, *callbacks))


def texts(lines: list[dict[str, Any]]) -> list[str]:
    return [line["formatted"] for line in lines]


def completes(libxl: Libxl, retval: int = 0, errnoval: int = 0) -> list[str]:
    """Expect the save (or restore) to end like this; returns what was logged until then."""
    lines, said = libxl.hear_logs()
    assert said == ("complete", {"retval": retval, "errnoval": errnoval}), texts(lines)
    libxl.answer(0)
    assert libxl.exit_status() == 0
    return texts(lines)


def makes_libxcs_callbacks(
    libraries: str, stream: tuple[socket.socket, socket.socket], dialect: Dialect
) -> None:
    near, far = stream
    with on_xen(save_of(near.fileno(), DOMID, dialect, xcflags=3), libraries) as libxl:
        lines, said = libxl.hear_logs()
        assert said == ("switch_qemu_logdirty", {"domid": DOMID, "enable": 1})
        release = Path(libraries).name.replace(".", "")
        assert f"libxenguest of release {release}" in texts(lines)
        assert f"dom {DOMID}, flags 3, stream_type 0, recv_fd -1" in texts(lines)
        # The policy can be changed from another shell, so it is ours even without settings.
        assert "callbacks suspend precopy_policy switch_qemu_logdirty" in texts(lines)
        libxl.answer(0)
        lines, said = libxl.hear_logs()
        assert texts(lines) == ["switch_qemu_logdirty = 0"]
        assert said == ("suspend", {})
        libxl.answer(1)
        assert "suspend = 1" in completes(libxl)
    near.close()
    assert far.recv(100) == b"the stream"


def test_a_save_makes_libxcs_callbacks(
    each_version: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    makes_libxcs_callbacks(each_version, stream, Dialect.MAINLINE)


@pytest.mark.parametrize("dialect", [Dialect.MAINLINE_4_7, Dialect.SERIES])
def test_a_save_of_another_libxl(
    xen: str, stream: tuple[socket.socket, socket.socket], dialect: Dialect
) -> None:
    makes_libxcs_callbacks(xen, stream, dialect)


def test_on_a_kernel_that_counts_nothing_a_save_goes_without_what_is_measured(
    xen: str, stream: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from xen_save_helper.helper.libxenguest import thread_meter\n"
        "thread_meter._COUNTERS = '/nonexistent'\n"
    )
    near, far = stream
    with on_xen(save_of(near.fileno(), DOMID), xen, PYTHONPATH=str(tmp_path)) as libxl:
        lines, _logdirty = libxl.hear_logs()
        libxl.answer(0)
        assert libxl.hear() == ("suspend", {})
        assert any("CONFIG_TASK_IO_ACCOUNTING" in text for text in texts(lines))
        libxl.answer(1)
        completes(libxl)
    near.close()
    assert far.recv(100) == b"the stream"


def test_log_lines_and_progress_arrive_as_libxc_gives_them(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    with on_xen(save_of(stream[0].fileno(), DOMID), xen) as libxl:
        told = []
        while (said := libxl.hear_any())[0] in ("log", "progress"):
            told.append(said)
    lines = [fields for name, fields in told if name == "log"]
    assert lines[0]["formatted"] == "starting save"
    assert lines[-1] == {
        "level": XentoollogLevel.INFO,
        "errnoval": errno.EDOM,
        "context": "xc",
        "formatted": "-1 -2 123456789abcdef three 4.500 6 7 acht\\xe9 9.5 10 11 12",
    }
    assert lines[1]["errnoval"] == 2**32 - 1
    assert [fields for name, fields in told if name == "progress"] == [
        {"context": "xc", "doing_what": "Frames", "done": 1, "total": 3},
        {"context": "xc", "doing_what": "Frames", "done": 3, "total": 3},
        {"context": "xc", "doing_what": "Complete", "done": 0, "total": 0},
    ]


def test_a_failed_callback_is_libxcs_failure_and_its_errno_is_kept(
    each_version: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    with on_xen(save_of(stream[0].fileno(), DOMID), each_version) as libxl:
        libxl.hear()
        libxl.answer(0)
        libxl.hear()
        libxl.answer(0)
        lines, said = libxl.hear_logs()
        assert said == ("complete", {"retval": -1, "errnoval": errno.EDOM})
        told = {line["formatted"]: line["errnoval"] for line in lines}
        assert told["suspend = 0"] == errno.EDOM, "a callback leaves libxc's errno as it was"
        assert any("xc_domain_save failed: Domain has not been suspended" in text for text in told)


def test_libxcs_own_failure(xen: str, stream: tuple[socket.socket, socket.socket]) -> None:
    with on_xen(save_of(stream[0].fileno(), DOMID), xen, "fail") as libxl:
        logged = completes(libxl, -1, errno.ENOSPC)
    assert any("Failed to write page data" in text for text in logged)
    assert logged[-1] == "complete r=-1"


def test_a_checkpointed_save_has_the_callbacks_that_libxl_gives(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    names = ("suspend", "postcopy", "checkpoint", "switch_qemu_logdirty")
    arguments = save_of(stream[0].fileno(), DOMID, stream_type=StreamType.REMUS)._replace(
        cbflags=cbflags(Dialect.MAINLINE, *names)
    )
    with on_xen(arguments, xen) as libxl:
        answers = {"switch_qemu_logdirty": 0, "suspend": 1, "postcopy": 5, "checkpoint": -3}
        logged: list[str] = []
        for name, answer in answers.items():
            lines, said = libxl.hear_logs()
            logged += texts(lines)
            assert said[0] == name
            libxl.answer(answer)
        logged += completes(libxl)
    assert "callbacks suspend postcopy checkpoint switch_qemu_logdirty" in logged
    assert "postcopy = 5" in logged
    assert "checkpoint = -3" in logged


@pytest.mark.parametrize(
    ("domid", "names", "stream_type", "missing"),
    [
        (DOMID, ("suspend",), StreamType.PLAIN, "no switch_qemu_logdirty callback: a HVM or PVH"),
        (PV_DOMID, ("log",), StreamType.PLAIN, "no suspend callback: a PV"),
        (PV_DOMID, ("suspend", "postcopy"), StreamType.REMUS, "no checkpoint callback"),
        (
            PV_DOMID,
            ("suspend",),
            StreamType.COLO,
            "no checkpoint and no postcopy and no wait_checkpoint callback",
        ),
    ],
)
def test_what_libxc_would_die_of_is_refused(
    xen: str,
    stream: tuple[socket.socket, socket.socket],
    domid: int,
    names: tuple[str, ...],
    stream_type: StreamType,
    missing: str,
) -> None:
    arguments = save_of(stream[0].fileno(), domid, stream_type=stream_type)._replace(
        cbflags=cbflags(Dialect.MAINLINE, *names) & ~2
    )
    with on_xen(arguments, xen) as libxl:
        logged = completes(libxl, -1, errno.EINVAL)
    assert any(missing in text for text in logged)


def test_a_pv_domain_needs_no_device_model(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    arguments = save_of(stream[0].fileno(), PV_DOMID)._replace(
        cbflags=cbflags(Dialect.MAINLINE, "suspend")
    )
    with on_xen(arguments, xen) as libxl:
        assert libxl.hear() == ("suspend", {})
        libxl.answer(1)
        completes(libxl)


def test_a_domain_that_there_is_not(xen: str, stream: tuple[socket.socket, socket.socket]) -> None:
    with on_xen(save_of(stream[0].fileno(), 404), xen) as libxl:
        assert any("there is no domain 404" in text for text in completes(libxl, -1, errno.ESRCH))


def test_the_interface_cannot_be_opened(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    arguments = save_of(stream[0].fileno(), DOMID)
    with on_xen(arguments, xen, XEN_PEER_CLOSED="1") as libxl:
        logged = completes(libxl, -1, errno.ENOENT)
    assert any("/dev/xen/privcmd does not exist: this has to run in the" in t for t in logged)


def test_a_restore(each_version: str, stream: tuple[socket.socket, socket.socket]) -> None:
    near, far = stream
    arguments = restoring(near.fileno(), "static_data_done", "restore_results")
    with on_xen(arguments, each_version) as libxl:
        far.sendall(b"the stream")
        lines, said = libxl.hear_logs()
        told = texts(lines)
        memflags = [text for text in told if text.startswith("memflags")]
        assert memflags == (["memflags 0"] if each_version.endswith("4.22") else [])
        assert f"dom {DOMID}, store 11 12, console 13 14, stream_type 0, send_back_fd -1" in told
        assert "callbacks static_data_done restore_results" in told
        assert said == ("static_data_done", {"missing": 3})
        libxl.answer(0)
        assert libxl.hear() == ("restore_results", {"store_gfn": 0xFEFFC, "console_gfn": 0xFEFFF})
        completes(libxl)


def real_stream(name: str) -> bytes:
    """The libxc stream of a real guest, up to its memory."""
    cut = read_cut(name)
    start = cut.index(b"\xff" * 8 + b"XENF")
    return cut[start : start + 4096]


def policy_in(stream: bytes) -> bytes:
    policy = policy_of(stream)
    assert isinstance(policy, Policy)
    return policy.cpuid


def without(leaves: bytes, *bits: tuple[int, int, int]) -> bytes:
    """`leaves` without these (leaf, register 0 to 3, bit)."""
    left = b""
    for leaf, subleaf, *registers in struct.iter_unpack("<6I", leaves):
        for number, register, bit in bits:
            if leaf == number and subleaf in (0, 0xFFFFFFFF):
                registers[register] &= ~(1 << bit)
        left += struct.pack("<6I", leaf, subleaf, *registers)
    return left


XSAVE, PKU, OSXSAVE = (1, 2, 26), (7, 2, 3), (1, 2, 27)
LACKS = "this host lacks CPU features that the guest was offered"


@pytest.fixture
def cpu(tmp_path: Path) -> Callable[..., str]:
    """Sets Xen's system policies: PV max and HVM max."""

    def system(pv: bytes, hvm: bytes) -> str:
        (tmp_path / "2").write_bytes(pv)
        (tmp_path / "3").write_bytes(hvm)
        return str(tmp_path)

    return system


def test_a_guest_of_another_cpu_is_refused_before_its_first_page(
    each_version: str, stream: tuple[socket.socket, socket.socket], cpu: Callable[..., str]
) -> None:
    near, far = stream
    front = real_stream("pvh-save-xen-4.17")
    here = without(policy_in(front), XSAVE, PKU, OSXSAVE)
    arguments = restoring(near.fileno(), "static_data_done", "restore_results")
    with on_xen(arguments, each_version, XEN_PEER_CPU=cpu(b"", here)) as libxl:
        far.sendall(front)
        lines, said = libxl.hear_logs()
        assert said == ("restore_results", {"store_gfn": 0, "console_gfn": 0})
        assert any(f"{LACKS}: xsave, pku." in text for text in texts(lines)), texts(lines)
        completes(libxl, -1, errno.ENOTSUP)
    assert near.recv(1 << 20) == front, "libxc was not begun"


def test_what_a_cpu_lacks_may_be_ignored(
    xen: str, stream: tuple[socket.socket, socket.socket], cpu: Callable[..., str]
) -> None:
    near, far = stream
    front = real_stream("pvh-save-xen-4.17")
    here = without(policy_in(front), PKU)
    settings = {"XEN_PEER_CPU": cpu(b"", here), "XEN_SAVE_HELPER_MISSING_CPU_FEATURES": "ignore"}
    arguments = restoring(near.fileno(), "static_data_done")
    with on_xen(arguments, xen, **settings) as libxl:
        far.sendall(front)
        lines, said = libxl.hear_logs()
        warned = [line for line in lines if line["formatted"].startswith(f"{LACKS}: pku;")]
        assert [line["level"] for line in warned] == [XentoollogLevel.WARN]
        assert said[0] == "static_data_done"
        libxl.answer(0)
        completes(libxl)


@pytest.mark.parametrize("name", ["pvh-save-xen-4.17", "pv-save-xen-4.17", "hvm-live-xen-4.17"])
def test_a_guest_of_the_same_cpu_is_restored(
    xen: str, stream: tuple[socket.socket, socket.socket], cpu: Callable[..., str], name: str
) -> None:
    """Each kind of guest is compared with what its own kind may have."""
    near, far = stream
    front = real_stream(name)
    offered = policy_in(front)
    system = cpu(offered, b"") if name.startswith("pv-") else cpu(b"", offered)
    with on_xen(restoring(near.fileno(), "static_data_done"), xen, XEN_PEER_CPU=system) as libxl:
        far.sendall(front)
        lines, said = libxl.hear_logs()
        assert f"the stream begins with {front[0]:02x} {front[9]:02x}" in texts(lines)
        assert not any("CPU features" in text for text in texts(lines))
        assert said[0] == "static_data_done"
        libxl.answer(0)
        completes(libxl)


def test_a_xen_that_does_not_tell_its_policy_restores_with_a_warning(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    near, far = stream
    with on_xen(restoring(near.fileno(), "static_data_done"), xen) as libxl:
        far.sendall(real_stream("pvh-save-xen-4.17"))
        lines, said = libxl.hear_logs()
        assert any("CPU features: xc_cpu_policy_serialise" in t for t in texts(lines)), texts(lines)
        assert said[0] == "static_data_done"
        libxl.answer(0)
        completes(libxl)


def test_a_colo_restore_tells_its_results_before_its_end(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    near, far = stream
    names = ("suspend", "postcopy", "checkpoint", "wait_checkpoint", "restore_results")
    arguments = restoring(near.fileno(), *names, stream_type=StreamType.COLO)
    with on_xen(arguments, xen) as libxl:
        far.sendall(b"the stream")
        assert libxl.hear() == ("restore_results", {"store_gfn": 0x11, "console_gfn": 0x22})
        assert libxl.hear() == ("restore_results", {"store_gfn": 0xFEFFC, "console_gfn": 0xFEFFF})
        completes(libxl)


def test_a_colo_restore_without_its_callbacks_is_refused(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    arguments = restoring(stream[0].fileno(), "restore_results", stream_type=StreamType.COLO)
    with on_xen(arguments, xen) as libxl:
        assert libxl.hear()[0] == "restore_results"
        logged = completes(libxl, -1, errno.EINVAL)
    assert logged


def test_a_failed_restore_tells_empty_results(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    near, far = stream
    arguments = restoring(near.fileno(), "static_data_done", "restore_results")
    with on_xen(arguments, xen) as libxl:
        far.sendall(b"the stream")
        assert libxl.hear()[0] == "static_data_done"
        libxl.answer(-1)
        assert libxl.hear() == ("restore_results", {"store_gfn": 0, "console_gfn": 0})
        name, fields = libxl.hear()
        assert (name, fields["retval"]) == ("complete", -1)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_libxcs_blocked_write_is_its_error_path(
    xen: str, stream: tuple[socket.socket, socket.socket], signum: signal.Signals
) -> None:
    near = stream[0]
    with on_xen(save_of(near.fileno(), DOMID, xcflags=1), xen, "stuck") as libxl:
        assert libxl.hear() == ("switch_qemu_logdirty", {"domid": DOMID, "enable": 1})
        libxl.answer(0)
        until_blocked(near)
        libxl.process.send_signal(signum)
        lines, said = libxl.hear_logs()
        assert said == ("switch_qemu_logdirty", {"domid": DOMID, "enable": 0})
        failure = [line for line in lines if "Failed to write page data" in line["formatted"]]
        assert failure[0]["errnoval"] == errno.EBADF
        libxl.answer(0)
        lines, said = libxl.hear_logs()
        assert said == ("complete", {"retval": -1, "errnoval": errno.ECANCELED})
        assert any(f"{signum.name} received" in text for text in texts(lines))
        libxl.answer(0)
        assert libxl.process.wait(1) == 0


def test_an_abort_is_a_failure_also_where_libxc_has_all_it_needs(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    arguments = save_of(stream[0].fileno(), PV_DOMID)._replace(
        cbflags=cbflags(Dialect.MAINLINE, "suspend")
    )
    with on_xen(arguments, xen, "late") as libxl:
        assert libxl.hear() == ("suspend", {})
        libxl.answer(1)
        while libxl.hear_any()[1]["formatted"] != "the stream is whole":
            pass
        libxl.process.send_signal(signal.SIGTERM)
        logged = completes(libxl, -1, errno.ECANCELED)
    assert any("SIGTERM received" in text for text in logged)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_kills_a_restore(
    xen: str, stream: tuple[socket.socket, socket.socket], signum: signal.Signals
) -> None:
    near, far = stream
    with on_xen(restoring(near.fileno(), "restore_results"), xen, "stuck") as libxl:
        far.sendall(b"x")
        while "callbacks" not in libxl.hear_any()[1]["formatted"]:
            pass
        libxl.process.send_signal(signum)
        assert libxl.process.wait(1) == -signum


@pytest.mark.parametrize("operation", list(Operation))
def test_libxls_death_ends_libxcs_work(
    xen: str, stream: tuple[socket.socket, socket.socket], operation: Operation
) -> None:
    near, far = stream
    if operation is Operation.SAVE:
        arguments = save_of(near.fileno(), PV_DOMID)._replace(
            cbflags=cbflags(Dialect.MAINLINE, "suspend")
        )
    else:
        arguments = restoring(near.fileno(), "restore_results")
    with on_xen(arguments, xen, "stuck") as libxl:
        if operation is Operation.RESTORE:
            far.sendall(b"x")
        while "callbacks" not in libxl.hear_any()[1].get("formatted", ""):
            pass
        libxl.hang_up()
        assert libxl.process.wait(2) == 254
        assert "Traceback" not in libxl.errors()


@pytest.mark.parametrize("front", [b"", b"\xff" * 8])
def test_libxls_death_before_the_stream_has_begun(
    xen: str, stream: tuple[socket.socket, socket.socket], front: bytes
) -> None:
    near, far = stream
    with on_xen(restoring(near.fileno(), "restore_results"), xen) as libxl:
        far.sendall(front)
        while libxl.hear_any()[1].get("formatted", "") != "starting restore":
            pass
        libxl.hang_up()
        assert libxl.process.wait(10) == 254
        assert "Traceback" not in libxl.errors()


def test_libxls_death_in_a_callback_ends_the_save(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    with on_xen(save_of(stream[0].fileno(), DOMID), xen) as libxl:
        assert libxl.hear()[0] == "switch_qemu_logdirty"
        libxl.hang_up()
        assert libxl.process.wait(2) == 254
        assert "Traceback" not in libxl.errors()


@pytest.mark.parametrize("operation", list(Operation))
def test_a_stream_that_stands_still_is_given_up(
    xen: str, stream: tuple[socket.socket, socket.socket], operation: Operation
) -> None:
    near = stream[0]
    saving = save_of(near.fileno(), PV_DOMID)._replace(cbflags=cbflags(Dialect.MAINLINE, "suspend"))
    arguments = saving if operation is Operation.SAVE else restoring(near.fileno(), "suspend")
    with on_xen(arguments, xen, "stuck", XEN_SAVE_HELPER_STREAM_STALL="0.4") as libxl:
        logged = completes(libxl, -1, errno.ETIMEDOUT)
    assert any("the stream stands still" in text for text in logged)


@pytest.fixture
def soon(tmp_path: Path) -> dict[str, str]:
    """The environment of a helper that reports a wait after only 0.3 s."""
    patch = "from xen_save_helper.ipc_schema.channel import waits\nwaits.PERIOD = 0.3\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    return {"PYTHONPATH": str(tmp_path)}


def until_logged(libxl: Libxl, text: str) -> dict[str, Any]:
    """The next log line with `text` in it."""
    while True:
        name, fields = libxl.hear_any()
        if name == "log" and text in fields["formatted"]:
            return fields


@pytest.mark.parametrize("operation", list(Operation))
def test_to_wait_for_the_other_side_is_no_failure(
    xen: str,
    stream: tuple[socket.socket, socket.socket],
    operation: Operation,
    soon: dict[str, str],
) -> None:
    near, far = stream
    saving = save_of(near.fileno(), PV_DOMID)._replace(cbflags=cbflags(Dialect.MAINLINE, "suspend"))
    arguments = saving if operation is Operation.SAVE else restoring(near.fileno(), "suspend")
    does = "take" if operation is Operation.SAVE else "send"
    with on_xen(arguments, xen, "stuck", **soon) as libxl:
        for _ in range(3):
            line = until_logged(libxl, f"s: waiting for the other side to {does} more")
            assert line["level"] == XentoollogLevel.WARN
            assert line["formatted"].startswith("the stream has stood still for ")
        if operation is Operation.SAVE:
            while not select.select([], [near], [], 0)[1]:
                far.recv(1 << 16)
        else:
            far.sendall(b"x" * 4096)
        assert until_logged(libxl, "the stream goes on after ")["level"] == XentoollogLevel.NOTICE
        until_logged(libxl, "waiting for the other side")
        if operation is Operation.SAVE:
            libxl.process.send_signal(signal.SIGTERM)
            completes(libxl, -1, errno.ECANCELED)


def test_a_helper_that_is_stuck_in_itself_is_told_of(
    xen: str, stream: tuple[socket.socket, socket.socket], soon: dict[str, str]
) -> None:
    arguments = save_of(stream[0].fileno(), PV_DOMID)._replace(
        cbflags=cbflags(Dialect.MAINLINE, "suspend")
    )
    with on_xen(arguments, xen, "late", **soon) as libxl:
        assert libxl.hear() == ("suspend", {})
        libxl.answer(1)
        for _ in range(2):
            line = until_logged(libxl, "a call into Xen or the kernel does not return")
            assert line["level"] == XentoollogLevel.WARN


@pytest.mark.parametrize("stream_type", [StreamType.REMUS, StreamType.COLO])
def test_a_checkpointed_stream_stands_still_for_as_long_as_its_primary_lives(
    xen: str, stream: tuple[socket.socket, socket.socket], stream_type: StreamType
) -> None:
    """libxc takes giving up the stream for the primary's death, and two guests would run."""
    near, far = stream
    names = ("suspend", "postcopy", "checkpoint", "wait_checkpoint", "restore_results")
    arguments = restoring(near.fileno(), *names, stream_type=stream_type)
    limits = {"XEN_SAVE_HELPER_STREAM_STALL": "0.2", "XEN_SAVE_HELPER_ANSWER_LIMIT": "0.2"}
    with on_xen(arguments, xen, "checkpoints", **limits) as libxl:
        near.close()
        far.sendall(b"the stream")
        lines, said = libxl.hear_logs()
        if stream_type is StreamType.COLO:
            assert said[0] == "restore_results"
            said = libxl.hear()
        logged = texts(lines)
        for _ in range(3):
            assert said == ("checkpoint", {})
            with pytest.raises(subprocess.TimeoutExpired):
                libxl.process.wait(0.6)
            libxl.answer(1)
            with pytest.raises(subprocess.TimeoutExpired):
                libxl.process.wait(0.6)
            far.sendall(b"the stream")
            said = libxl.hear()
        far.close()
        libxl.answer(1)
        assert libxl.hear()[0] == "restore_results"
        completes(libxl)
    for name in limits:
        assert any(f"{name} is ignored" in text for text in logged), logged


def test_a_checkpointed_save_waits_for_its_secondary(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    near = stream[0]
    names = ("suspend", "postcopy", "checkpoint")
    arguments = save_of(near.fileno(), PV_DOMID, stream_type=StreamType.REMUS)._replace(
        cbflags=cbflags(Dialect.MAINLINE, *names)
    )
    with on_xen(arguments, xen, "stuck", XEN_SAVE_HELPER_STREAM_STALL="0.2") as libxl:
        until_blocked(near)
        with pytest.raises(subprocess.TimeoutExpired):
            libxl.process.wait(1)
        libxl.process.send_signal(signal.SIGTERM)
        logged = completes(libxl, -1, errno.ECANCELED)
    assert any("XEN_SAVE_HELPER_STREAM_STALL is ignored" in text for text in logged)


def test_a_slow_stream_is_not_given_up(
    xen: str, stream: tuple[socket.socket, socket.socket]
) -> None:
    near, far = stream
    arguments = save_of(near.fileno(), PV_DOMID)._replace(
        cbflags=cbflags(Dialect.MAINLINE, "suspend")
    )
    with on_xen(arguments, xen, "stuck", XEN_SAVE_HELPER_STREAM_STALL="2") as libxl:
        for _ in range(30):
            until_blocked(near)
            time.sleep(0.1)  # the reader's own pace
            far.recv(8192)
        assert libxl.process.poll() is None
        libxl.process.send_signal(signal.SIGTERM)
        completes(libxl, -1, errno.ECANCELED)


# The precopy policy: XEN_PEER_DIRTY are the pages dirtied in each round.


def rounds(
    xen: str, near: socket.socket, dirty: str, tmp_path: Path, **settings: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Save with these settings until libxc returns: what was logged, and the decisions traced."""
    events = tmp_path / "events"
    environment = {f"XEN_SAVE_HELPER_{name}": value for name, value in settings.items()}
    arguments = save_of(near.fileno(), PV_DOMID, xcflags=1)._replace(
        cbflags=cbflags(Dialect.MAINLINE, "suspend")
    )
    with on_xen(
        arguments,
        xen,
        "rounds",
        XEN_PEER_DIRTY=dirty,
        XEN_SAVE_HELPER_EVENTS=str(events),
        **environment,
    ) as libxl:
        lines, said = libxl.hear_logs()
        if said[0] == "suspend":
            libxl.answer(1)
            more, said = libxl.hear_logs()
            lines += more
        assert said[0] == "complete"
        libxl.answer(0)
        assert libxl.exit_status() == 0
    told = trace_lines.read(events)
    logged = [*texts(lines), f"errnoval {said[1]['errnoval']}"]
    return logged, [line for line in told if line["event"] == "precopy_policy"]


@pytest.fixture
def drained() -> Iterator[socket.socket]:
    """A stream that is read."""
    near, far = socket.socketpair()

    def drain() -> None:
        while far.recv(1 << 20):
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    with far:
        with near:
            yield near
        reader.join()


@pytest.mark.parametrize(
    ("settings", "dirty", "rounds_made", "why"),
    [
        ({"MAX_ITERATIONS": "1"}, "", 1, "1 rounds, at most 1"),
        ({"MAX_ITERATIONS": "10"}, "900 " * 10, 10, "10 rounds, at most 10"),
        ({"MAX_ITERATIONS": "10"}, "900 49", 2, "49 dirty pages, at most 49 wanted"),
        ({"DIRTY_THRESHOLD": "800"}, "900 800", 2, "800 dirty pages, at most 800 wanted"),
        ({"DIRTY_THRESHOLD": "0"}, "9 " * 9, 5, "5 rounds, at most 5"),
        ({"MAX_DOWNTIME_MS": "60000"}, "900", 1, "900 dirty pages take"),
        ({"ABORT_AFTER": "9"}, "900 900 900 900 900 900 9", 7, "9 dirty pages"),
    ],
)
def test_the_policy_of_the_environment(
    xen: str,
    drained: socket.socket,
    tmp_path: Path,
    settings: dict[str, str],
    dirty: str,
    rounds_made: int,
    why: str,
) -> None:
    logged, decisions = rounds(xen, drained, dirty, tmp_path, **settings)
    assert f"precopy ends after {rounds_made} rounds" in logged
    assert logged[-1] == "errnoval 0"
    assert decisions[-1]["decision"] == "STOP_AND_COPY"
    assert decisions[-1]["iteration"] == rounds_made
    assert why in decisions[-1]["why"]
    assert {line["decision"] for line in decisions[:-1]} == {"CONTINUE_PRECOPY"}
    assert any(f"precopy policy: stop and copy: {why}" in text for text in logged)


def test_a_migration_that_does_not_converge_is_given_up(
    xen: str, drained: socket.socket, tmp_path: Path
) -> None:
    logged, decisions = rounds(xen, drained, "900 " * 9, tmp_path, ABORT_AFTER="3")
    assert logged[-1] == f"errnoval {errno.ECANCELED}"
    why = "900 pages are dirty after 3 rounds, the last allowed"
    assert f"precopy policy: abort: {why}" in logged
    assert not any("suspend" in text for text in logged if "callbacks" not in text)
    assert decisions[-1] == decisions[-1] | {"decision": "ABORT", "iteration": 3, "why": why}


def test_without_settings_the_policy_is_libxenguests(
    xen: str, drained: socket.socket, tmp_path: Path
) -> None:
    logged, decisions = rounds(xen, drained, "", tmp_path)
    assert "callbacks suspend precopy_policy" in logged
    assert decisions == []
    assert not any("precopy policy" in text for text in logged), "it does so without a word"


def test_a_file_in_place_of_the_environment(
    xen: str, drained: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "conf").write_text("# of this host\nXEN_SAVE_HELPER_MAX_ITERATIONS = 2\n\n")
    settings = {"CONFIG": str(tmp_path / "conf")}
    logged, _decisions = rounds(xen, drained, "900 900", tmp_path, **settings)
    assert "precopy ends after 2 rounds" in logged


@pytest.mark.parametrize(
    ("answer", "errnoval", "text"),
    [
        (1, 0, "precopy ends after 0 rounds"),
        (-1, errno.ECANCELED, "Abort precopy loop"),
        (2, errno.EOPNOTSUPP, "postcopy, which the engine libxenguest cannot do"),
        (7, errno.EINVAL, "precopy_policy answered 7, which is not a decision"),
    ],
)
def test_a_toolstacks_own_policy_comes_first(
    xen: str, drained: socket.socket, answer: int, errnoval: int, text: str
) -> None:
    arguments = save_of(drained.fileno(), PV_DOMID, Dialect.SERIES, xcflags=1)._replace(
        cbflags=cbflags(Dialect.SERIES, "suspend", "precopy_policy")
    )
    with on_xen(arguments, xen, "rounds", XEN_SAVE_HELPER_MAX_ITERATIONS="1") as libxl:
        lines, said = libxl.hear_logs()
        assert said == ("precopy_policy", {"iteration": 0, "total_written": 0, "dirty_count": 2048})
        libxl.answer(answer)
        more, said = libxl.hear_logs()
        lines += more
        if said[0] == "suspend":
            libxl.answer(1)
            more, said = libxl.hear_logs()
            lines += more
        assert said == ("complete", {"retval": -1 if errnoval else 0, "errnoval": errnoval})
        libxl.answer(0)
        assert libxl.exit_status() == 0
    assert any(text in line for line in texts(lines)), texts(lines)


def test_precopy_stats_arrive_whole(each_version: str, drained: socket.socket) -> None:
    arguments = save_of(drained.fileno(), PV_DOMID, Dialect.SERIES, xcflags=1)._replace(
        cbflags=cbflags(Dialect.SERIES, "suspend", "precopy_policy")
    )
    told = []
    with on_xen(arguments, each_version, "rounds", XEN_PEER_DIRTY="70000 3") as libxl:
        while (said := libxl.hear())[0] == "precopy_policy":
            told.append(tuple(said[1].values()))
            libxl.answer(1 if said[1]["dirty_count"] == 3 else 0)
    assert told == [(0, 0, 2048), (1, 2048, -1), (1, 2048, 70000), (2, 72048, -1), (2, 72048, 3)]


@pytest.mark.skipif(
    os.path.exists("/sys/hypervisor/version"),
    reason="this machine runs Xen, which says its version",
)
@pytest.mark.parametrize("runs", ["4.17", "4.20"])
def test_of_several_libraries_those_of_the_hypervisor_that_answers(
    peers: Any, stream: tuple[socket.socket, socket.socket], runs: str
) -> None:
    both = f"{peers('4.17')}:{peers('4.20')}"
    with on_xen(save_of(stream[0].fileno(), DOMID), both, XEN_PEER_RUNS=runs) as libxl:
        lines, said = libxl.hear_logs()
    assert said[0] == "switch_qemu_logdirty"
    assert f"libxenguest of release {runs.replace('.', '')}" in texts(lines)


@pytest.mark.skipif(
    os.path.exists("/sys/hypervisor/version"),
    reason="this machine runs Xen, which says its version",
)
@pytest.mark.parametrize(
    ("environment", "errnoval", "text"),
    [
        ({"XEN_PEER_RUNS": "4.23"}, errno.ENOTSUP, "Xen 4.23 runs here, and this"),
        ({"XEN_PEER_RUNS": "4.19"}, errno.ENOENT, "libxenctrl.so.4.19 cannot be loaded"),
        (
            {"XEN_PEER_CLOSED": "1"},
            errno.ENODEV,
            "the libraries of 4.17, 4.20 are installed, and the hypervisor does not answer; remove",
        ),
    ],
)
def test_of_several_libraries_none_is_taken_by_guess(
    peers: Any,
    stream: tuple[socket.socket, socket.socket],
    environment: dict[str, str],
    errnoval: int,
    text: str,
) -> None:
    both = f"{peers('4.17')}:{peers('4.20')}"
    with on_xen(save_of(stream[0].fileno(), DOMID), both, **environment) as libxl:
        logged = completes(libxl, -1, errnoval)
    assert any(text in line for line in logged), logged
