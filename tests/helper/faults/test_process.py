"""The real helper with a plan, and what our controller makes of it, on both channels."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import trace_lines
from tests.conftest import hosts_in
from tests.helper.engine.running import suspend
from tests.helper.libxl_side import HELPER, save_of, started
from tests.toolstack.helpers.running_helpers import Reaction, Run, run_helper
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation, PrecopyPolicy, XCFlags
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.helpers.request import HelperResult, OwnHelper, PipeHelper
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.operations.settle import heal

pytestmark = pytest.mark.usefixtures("runtime_directory")

MEMORY = 4 << 20
LIMITS = Limits(helper_start=5, stopped=0.5, callback=1, abort=1, stream_stall=1)
SHORT = replace(LIMITS, callback=0.8, abort=0.4, stream_stall=0.4)
"""For helpers that must run into one."""
ZMQ = OwnHelper()
PIPE = PipeHelper(Path(sys.executable).parent / "xen-save-helper", Dialect.MAINLINE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedHost]:
    """A host with one guest that all these tests save, and that runs on each time."""
    with hosts_in(tmp_path_factory.mktemp("faults")) as make:
        made = make("host")
        made.create_guest("g", MEMORY, "idle")
        yield made


class Saving:
    """Saves of a guest under plans."""

    def __init__(self, host: SimulatedHost, domid: int, directory: Path) -> None:
        self.host = host
        self.domid = domid
        self.stream = directory / "stream"
        self.events = directory / "events"

    def run(
        self, plan: str, program: OwnHelper | PipeHelper = ZMQ, limits: Limits = LIMITS
    ) -> HelperResult:
        os.environ["XEN_SAVE_HELPER_FAULTS"] = plan
        os.environ["XEN_SAVE_HELPER_EVENTS"] = str(self.events)
        self.events.unlink(missing_ok=True)
        with self.stream.open("wb") as stream:
            request = HelperRequest(
                Operation.SAVE,
                self.domid,
                stream.fileno(),
                xcflags=XCFlags.LIVE,
                hypervisor=f"sim:{self.host.directory}",
            )
            run = run_helper(program, self._reactions(), request=request, limits=limits)
        assert run.result is not None
        self.host.resume(self.domid)
        return run.result

    def fired(self) -> list[dict[str, Any]]:
        events = trace_lines.read(self.events)
        return [event for event in events if event["event"] == "fault"]

    def _reactions(self) -> dict[str, Reaction]:
        def answer(run: Run) -> None:
            run.helper.async_callback_done(suspend(self.host, self.domid))

        def logdirty(run: Run) -> None:
            self.host.switch_qemu_logdirty(self.domid, bool(run.heard[-1][1]["enable"]))
            run.helper.async_callback_done(0)

        return {
            "suspend": answer,
            "switch_qemu_logdirty": logdirty,
            "precopy_policy": lambda _run: PrecopyPolicy.STOP_AND_COPY,
        }


@pytest.fixture
def saving(shared: SimulatedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saving:
    for name in ("FAULTS", "EVENTS"):
        monkeypatch.setenv(f"XEN_SAVE_HELPER_{name}", "")
    (row,) = shared.domains()
    # A helper that was killed has left log-dirty mode on.
    assert heal(shared, row.domid) == ""
    return Saving(shared, row.domid, tmp_path)


BY_HAND = ("--save-domain", "0", "-1", "1", "0", "0", "0")
BOTH = pytest.mark.parametrize("program", [ZMQ, PIPE], ids=["zmq", "pipe"])
FAIL, TIMEDOUT = Error.FAIL, Error.TIMEDOUT


@BOTH
@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("start=exit(3)", "exit status 3: xen-save-helper: fault: start=exit(3)"),
        ("hello=exit(0)", "without signalling completion"),
        ("hello=die(SEGV)", "killed by signal 11"),
        ("phase.precopy=die(TERM)", "killed by signal 15"),
        ("suspend:before-send=kill", "killed by signal 9: xen-save-helper: fault: suspend:before"),
        ("suspend:after-send=kill", "killed by signal 9"),
        ("suspend:before-answer=exit(7)", "exit status 7"),
        ("suspend:after-answer=exit(7)", "exit status 7"),
        ("record.libxc.HVM_CONTEXT:write=kill", "killed by signal 9"),
        ("stream@100000=exit(9)", "exit status 9"),
        ("suspend:before-send=fail(EIO)", "exit status 255: xen-save-helper: fault: suspend:be"),
        ("suspend:before-answer=fail(EIO)", "exit status 255"),
        ("suspend:before-send=hang-up", "exit status 254"),
        ("suspend:before-answer=hang-up", "exit status 254"),
        ("suspend:after-answer=hang-up", "exit status 254"),
        ("suspend:before-send=drop", "exit status 255: xen-save-helper: no answer to suspend"),
        ("suspend:before-answer=drop", "exit status 255: xen-save-helper: no answer to suspend"),
        ("suspend:before-send=garbage", "the helper broke the protocol"),
        ("suspend:before-send=wrong-number", "no such message"),
        ("complete:before-send=kill", "killed by signal 9"),
        ("complete:before-send=drop", "no answer to complete"),
    ],
)
def test_a_helper_that_fails(
    saving: Saving, program: OwnHelper | PipeHelper, plan: str, words: str
) -> None:
    result = saving.run(plan, program)
    assert (result.rc, result.completed) == (FAIL, False)
    assert words in result.reason
    (event,) = saving.fired()
    assert event["fault"] == plan
    assert event["count"] == 1


@BOTH
@pytest.mark.parametrize("point", ["complete:after-send", "complete:after-answer", "exit"])
def test_a_helper_that_dies_once_it_has_told_its_result(
    saving: Saving, program: OwnHelper | PipeHelper, point: str
) -> None:
    result = saving.run(f"{point}=kill", program)
    assert result.rc == FAIL
    assert (result.completed, result.retval) == (True, 0)
    assert "killed by signal 9" in result.reason


@BOTH
@pytest.mark.parametrize(
    ("plan", "errnoval"),
    [
        ("phase.precopy=signal(TERM)", errno.ECANCELED),
        ("phase.precopy=fail(ENOMEM)", errno.ENOMEM),
        ("suspend:before-answer=answer(0)", errno.EIO),
        ("suspend:after-answer=fail(EXDEV)", errno.EXDEV),
        ("record.libxc.HVM_CONTEXT:write=enospc", errno.ENOSPC),
        ("stream@5000=epipe", errno.EPIPE),
        ("stream@5000=reset", errno.ECONNRESET),
        ("record.libxc.END:write=cut", errno.EPIPE),
        ("page@3=stall", errno.ETIMEDOUT),
        ("record.libxc.END:write=stall", errno.ETIMEDOUT),
    ],
)
def test_a_save_that_fails(
    saving: Saving, program: OwnHelper | PipeHelper, plan: str, errnoval: int
) -> None:
    result = saving.run(plan, program)
    assert (result.rc, result.completed) == (0, True)
    assert (result.retval, result.errnoval) == (-1, errnoval)
    assert len(saving.fired()) == 1
    (row,) = saving.host.domains()
    assert not row.log_dirty


@BOTH
@pytest.mark.parametrize(
    ("plan", "count"),
    [
        ("log:before-send#1000000=drop", 0),
        ("suspend:before-send=delay(0.2)", 1),
        ("suspend:after-send=stop(0.2)", 1),
        # Its controller lets it go on.
        ("start=stop", 1),
        ("suspend:after-send=stop", 1),
        ("complete:before-send=die(TSTP)", 1),
        ("exit=stop", 1),
        ("stream@0=stall(0.2)", 1),
        ("stream@50=short-writes(3000)", 1),
        ("stream@50=trickle(50000000)", 1),
        ("switch_qemu_logdirty:after-answer#2=fail(EIO)", 1),
        ("first-byte=signal(CHLD)", 1),
        ("destination/suspend:before-send=kill", 0),
        ("suspend:before-send#2=kill", 0),
    ],
)
def test_what_a_save_gets_over(
    saving: Saving, program: OwnHelper | PipeHelper, plan: str, count: int
) -> None:
    result = saving.run(plan, program)
    assert (result.rc, result.retval, result.reason) == (0, 0, "")
    assert len(saving.fired()) == count


@pytest.mark.parametrize(
    ("plan", "program", "words"),
    [
        ("suspend:before-send=truncate", ZMQ, "incomplete input"),
        ("suspend:before-send=truncate", PIPE, "no answer to suspend"),
        # libzmq breaks the connection, and either end may be the first to say so.
        ("suspend:before-send=oversize", ZMQ, "hung up"),
        ("suspend:before-send=oversize", PIPE, "bytes too many"),
        ("suspend:before-send=wrong-sequence", ZMQ, "wrong sequence number: suspend has"),
        ("suspend:before-send=duplicate", ZMQ, "wrong sequence number: suspend has"),
        ("hello:before-send=duplicate", ZMQ, "wrong sequence number: hello has 1"),
        ("hello:before-send=garbage", ZMQ, "the controller refused: message at offset 0x0"),
        ("log:before-send#2=reorder", ZMQ, "wrong sequence number: "),
        ("log:before-send#2=drop", ZMQ, "wrong sequence number"),
        ("statistics:before-send=drop", ZMQ, "wrong sequence number"),
    ],
)
def test_what_the_encodings_show(
    saving: Saving, plan: str, program: OwnHelper | PipeHelper, words: str
) -> None:
    result = saving.run(plan, program)
    assert (result.rc, result.completed) == (FAIL, False)
    assert words in result.reason


def test_a_channel_that_fails_before_the_start_has_an_errno_in_the_trace(saving: Saving) -> None:
    assert saving.run("hello:before-send=fail(EIO)").rc == FAIL
    (failure,) = (one for one in trace_lines.read(saving.events) if one["event"] == "failure")
    assert (failure["what"], failure["errnoval"]) == ("channel", errno.EIO)


def test_what_libxls_pipes_do_not_show(saving: Saving) -> None:
    for action in ("drop", "duplicate", "reorder"):
        result = saving.run(f"log:before-send#2={action}", PIPE)
        assert (result.rc, result.retval) == (0, 0)


@BOTH
@pytest.mark.parametrize(
    "point", ["hello", "phase.precopy", "suspend:before-send", "complete:before-send"]
)
def test_a_helper_that_hangs_ends_itself(
    saving: Saving, program: OwnHelper | PipeHelper, point: str
) -> None:
    result = saving.run(f"{point}=delay(100000)", program, SHORT)
    assert result.rc == FAIL
    quiet = "exit status 255: xen-save-helper: the helper has done nothing for 1.6 s"
    assert quiet in result.reason


def test_lost_log_lines_by_chance_are_the_same_with_the_same_seed(saving: Saving) -> None:
    fired = []
    for seed in (1, 1, 2):
        assert saving.run(f"log:before-send#50%=drop; seed={seed}", PIPE).rc == 0
        fired.append([event["count"] for event in saving.fired()])
    assert fired[0] == fired[1] != fired[2]


@pytest.mark.parametrize(
    ("plan", "program", "words"),
    [
        ("suspend:before-sent=kill", ZMQ, "close to it: before-send"),
        ("suspend:before-send=wrong-sequence", PIPE, "no such thing on libxl's pipes"),
        ("hello:before-send=kill", PIPE, "no such thing on libxl's pipes"),
        ("guest/suspend=refuse", PIPE, "`xen-toolstack faults run` does"),
        ("hello=delay(0.1); link/back@0=cut", ZMQ, "'link/back@0=cut': no helper does that"),
        ("@/nonexistent/plan", ZMQ, "@/nonexistent/plan: No such file or directory"),
    ],
)
def test_a_wrong_plan_is_refused(
    saving: Saving, plan: str, program: OwnHelper | PipeHelper, words: str
) -> None:
    result = saving.run(plan, program)
    assert result.rc == FAIL
    assert "exit status 255: xen-save-helper: faults: " in result.reason
    assert words in result.reason


def test_a_plan_may_come_from_a_file(saving: Saving, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_text("# dies\nsuspend:before-send = kill\n")
    assert "killed by signal 9" in saving.run(f"@{plan}").reason
    plan.write_text("suspend:before-send = kil\n")
    assert f"faults: @{plan}: 'suspend:before-send = kil'" in saving.run(f"@{plan}").reason


def test_by_option_and_settings_file_under_libxl(saving: Saving, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("XEN_SAVE_HELPER_FAULTS = start=exit(4)\n")
    near, far = socket.socketpair()
    with near, far:
        arguments = save_of(near.fileno(), saving.domid)
        with started(arguments, XEN_SAVE_HELPER_CONFIG=str(config)) as libxl:
            assert libxl.exit_status() == 4
            assert libxl.errors() == "xen-save-helper: fault: start=exit(4), time 1\n"
    done = subprocess.run(
        [*HELPER, "--faults", "start=die(ABRT)", *BY_HAND],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT
    assert [path.name for path in tmp_path.iterdir() if "core" in path.name] == []


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("log:before-send=garbage", r"xen-save-helper: faults: seed=\d+\n"),
        ("log:before-send#30%=drop; seed=5", r"xen-save-helper: faults: seed=5\n"),
        ("log:before-send=drop", ""),
    ],
)
def test_the_seed_is_told_where_it_decides_anything(plan: str, said: str) -> None:
    done = subprocess.run(
        [*HELPER, "--faults", f"start=exit(4); {plan}", *BY_HAND],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 4
    assert re.fullmatch(rf"{said}xen-save-helper: fault: start=exit\(4\), time 1\n", done.stderr)


def test_without_a_plan_nothing_of_it_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *HELPER[1:], *BY_HAND],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert b"xen_save_helper.helper.channels.pipe_channel" in done.stderr
    assert b"fault" not in done.stderr
