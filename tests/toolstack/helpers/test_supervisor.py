from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.helper.engine.running import suspend
from tests.toolstack.helpers.running_helpers import (
    QUICK,
    Reaction,
    Run,
    run_helper,
    scripted,
)
from tests.waiting import gone, wait_for
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation, PrecopyPolicy, XCFlags
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.helpers.request import (
    HelperResult,
    OwnHelper,
    PipeHelper,
    Statistics,
)
from xen_save_helper.toolstack.helpers.supervisor import SaveHelper
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.limits import Limits

pytestmark = pytest.mark.usefixtures("runtime_directory")

MEMORY = 8 << 20
POLICY = {"iteration": 1, "total_written": 2, "dirty_count": 3}


def reaped(run: Run) -> bool:
    return not psutil.pid_exists(run.pid)


def failure(run: Run, rc: int = Error.FAIL, *, completed: bool = False) -> str:
    """Return the reason of a run that failed with `rc`."""
    assert run.result is not None
    assert (run.result.rc, run.result.completed) == (rc, completed)
    assert reaped(run)
    return run.result.reason


def test_a_long_path_of_temporary_files_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    run = run_helper(scripted("start", "complete"))
    assert run.result is not None
    assert run.result.completed


class TestAConversation:
    def test_from_hello_to_complete(self) -> None:
        run = run_helper(scripted("start", "log", "policy", "suspend", "statistics", "complete"))
        assert run.result == HelperResult(
            rc=0,
            retval=0,
            errnoval=0,
            reason="",
            statistics=Statistics(1, 2, 3, 4, 5),
            completed=True,
        )
        said_on_stderr = [fields for fields in run.heard if "policy 0" in str(fields)]
        assert [fields for fields in run.heard if fields not in said_on_stderr] == [
            ("log", {"level": 5, "errnoval": 0, "context": "xc", "formatted": "a line"}),
            ("precopy_policy", POLICY),
            ("suspend", {}),
        ]
        assert reaped(run)

    @pytest.mark.parametrize("value", [-1, 0, 2])
    def test_a_sync_answer_arrives(self, value: int) -> None:
        run = run_helper(
            scripted("start", "policy", "complete"), {"precopy_policy": lambda _: value}
        )
        assert f"policy {value}" in [event.get("line") for event in run.events]

    def test_an_async_answer_may_come_later(self) -> None:
        def later(run: Run) -> None:
            loop = asyncio.get_running_loop()
            loop.call_later(0.05, run.helper.async_callback_done, 1)

        run = run_helper(scripted("start", "suspend", "complete"), {"suspend": later})
        assert run.result is not None
        assert run.result.rc == 0

    def test_an_answer_to_another_callback_is_ignored(self) -> None:
        def twice(run: Run) -> None:
            run.helper.async_callback_done(1, "switch_qemu_logdirty")
            run.helper.async_callback_done(1, "suspend")
            run.helper.async_callback_done(1)

        run = run_helper(scripted("start", "suspend", "complete"), {"suspend": twice})
        assert run.result is not None
        assert run.result.rc == 0

    def test_libxcs_failure_is_not_one_of_running_it(self) -> None:
        run = run_helper(scripted("start", "fail"))
        assert run.result is not None
        assert (run.result.rc, run.result.retval, run.result.errnoval) == (0, -1, 5)

    def test_a_restore_sends_its_results(self) -> None:
        request = HelperRequest(Operation.RESTORE, 1, 0, hypervisor="sim:/nonexistent")
        steps = scripted("start", "restore_results", "complete")
        run = run_helper(steps, {"restore_results": lambda _: None}, request=request)
        assert run.result is not None
        assert run.result.rc == 0
        assert run.heard == [("restore_results", {"store_gfn": 11, "console_gfn": 12})]

    def test_a_restore_without_results(self) -> None:
        request = HelperRequest(Operation.RESTORE, 1, 0, hypervisor="sim:/nonexistent")
        run = run_helper(scripted("start", "complete"), request=request)
        assert "without providing results" in failure(run, completed=True)

    def test_the_endpoint_is_gone_once_the_helper_connects(self, runtime_directory: Path) -> None:
        left: list[list[str]] = []

        def look(_run: Run) -> int:
            left.append(os.listdir(runtime_directory))
            return 0

        run_helper(scripted("start", "policy", "complete"), {"precopy_policy": look})
        assert left == [[]]

    def test_its_stderr_is_logged(self) -> None:
        run = run_helper(scripted("start", "stderr_flood", "complete"))
        lines = [fields["formatted"] for name, fields in run.heard if name == "log"]
        assert sum(map(len, lines[:-1])) == 1_000_000
        assert lines[-1] == "\\xe9 last line"
        assert all(len(line) <= 8192 for line in lines)

    def test_it_is_in_a_session_of_its_own(self) -> None:
        sessions: list[int] = []

        def look(run: Run) -> int:
            sessions.append(os.getsid(run.pid))
            return 0

        run = run_helper(scripted("start", "policy", "complete"), {"precopy_policy": look})
        assert sessions == [run.pid]

    def test_a_caller_cannot_provide_another_operations_callback(self) -> None:
        with pytest.raises(ValueError, match="restore_results is not a callback of a save"):
            run_helper(scripted("start"), {"restore_results": lambda _: None})


class TestAHelperThatFails:
    def test_it_cannot_be_started(self) -> None:
        run = run_helper(OwnHelper(("/nonexistent/helper",)))
        assert run.result is not None
        assert run.result.rc == Error.FAIL
        assert "/nonexistent/helper" in run.result.reason

    @pytest.mark.parametrize("steps", [["exit_3"], ["start", "exit_3"], ["hello", "exit_3"]])
    def test_its_exit_status_and_last_words_are_reported(self, steps: list[str]) -> None:
        reason = failure(run_helper(scripted(*steps)))
        assert reason == "the helper ended with exit status 3: something went wrong"

    def test_it_exits_without_completing(self) -> None:
        reason = failure(run_helper(scripted("start", "exit_0")))
        assert reason == "the helper ended without signalling completion"

    def test_it_completes_and_is_gone_before_that_is_read(self) -> None:
        def outlive(run: Run) -> None:
            wait_for(lambda: gone(run.pid), "the helper is gone")

        steps = scripted("start", "log", "complete_third", "exit_0")
        run = run_helper(steps, {"log": outlive})
        assert run.result is not None
        assert (run.result.rc, run.result.completed) == (0, True), run.result

    def test_it_fails_after_it_completed(self) -> None:
        reason = failure(run_helper(scripted("start", "complete", "exit_3")), completed=True)
        assert "exit status 3" in reason

    @pytest.mark.parametrize("steps", [[], ["hello"], ["start"], ["start", "policy", "log"]])
    def test_it_is_killed(self, steps: list[str]) -> None:
        assert "killed by signal 9" in failure(run_helper(scripted(*steps, "be_killed")))

    def test_it_is_killed_after_it_completed(self) -> None:
        run = run_helper(scripted("start", "complete", "be_killed"))
        assert "killed by signal 9" in failure(run, completed=True)

    def test_it_is_killed_in_an_async_callback(self) -> None:
        def kill(run: Run) -> None:
            os.kill(run.pid, signal.SIGKILL)
            asyncio.get_running_loop().call_later(0.1, run.helper.async_callback_done, 1)

        run = run_helper(scripted("start", "suspend", "complete"), {"suspend": kill})
        failure(run)


SILENT_SOON = Limits(helper_start=20, stream_stall=0.2, callback=0.2, abort=0.2)
SILENT = "the helper has said nothing and moved no byte for 0.95 s"

WRITES_A_LITTLE = """#!{python}
import os, sys, time
for _ in range(60):
    os.write(int(sys.argv[2]), bytes(100))
    time.sleep(0.05)
sys.exit(7)
"""
WRITES_MUCH_AT_ONCE = """#!{python}
import os, sys
assert os.write(int(sys.argv[2]), bytes(5 << 20))
sys.exit(7)
"""
"""Its one system call lasts for seconds."""
STARTS_ANOTHER = """#!/bin/sh
{python} -c '
import os, sys, time
for _ in range(60):
    os.write(int(sys.argv[1]), bytes(100))
    time.sleep(0.05)
' "$2"
exit 7
"""


def pipe_helper(tmp_path: Path, script: str) -> PipeHelper:
    program = tmp_path / "helper"
    program.write_text(script)
    program.chmod(0o700)
    return PipeHelper(program, Dialect.MAINLINE)


class TestLimits:
    def test_no_hello(self) -> None:
        run = run_helper(scripted("hang"), limits=Limits(helper_start=0.5))
        assert "did not say hello within 0.5 s" in failure(run, Error.TIMEDOUT)

    @pytest.mark.parametrize(
        "steps",
        [
            pytest.param(["be_stopped", "start", "policy", "complete"], id="before hello"),
            pytest.param(["start", "policy", "be_stopped", "complete"], id="at work"),
            pytest.param(["start", "complete", "be_stopped"], id="after its work"),
        ],
    )
    def test_one_that_is_stopped_is_continued(self, steps: list[str]) -> None:
        """None of the limits counts the time in which it was stopped."""
        run = run_helper(scripted(*steps), limits=Limits(1, 3, stream_stall=0.2, abort=1))
        assert run.result is not None
        assert (run.result.rc, run.result.completed) == (0, True), run.result
        assert len(run.stood_still) == 1
        assert 2 < run.stood_still[0] < 10

    def test_a_helper_that_does_nothing_more(self) -> None:
        run = run_helper(scripted("start", "log", "hang"), limits=SILENT_SOON, within=10)
        assert failure(run, Error.TIMEDOUT) == SILENT

    def test_a_helper_on_libxls_pipes_that_never_says_anything(self, tmp_path: Path) -> None:
        program = pipe_helper(tmp_path, "#!/bin/sh\nexec sleep 300\n")
        run = run_helper(program, limits=SILENT_SOON, within=10)
        assert failure(run, Error.TIMEDOUT) == SILENT

    @pytest.mark.parametrize("script", [WRITES_A_LITTLE, WRITES_MUCH_AT_ONCE, STARTS_ANOTHER])
    def test_a_silent_helper_whose_stream_moves_is_left_alone(
        self, tmp_path: Path, script: str
    ) -> None:
        read, write = os.pipe()

        def take_slowly() -> None:
            while os.read(read, 4096):
                time.sleep(0.002)

        reader = threading.Thread(target=take_slowly)
        reader.start()
        request = HelperRequest(Operation.SAVE, 1, write)
        program = pipe_helper(tmp_path, script.format(python=sys.executable))
        try:
            run = run_helper(program, request=request, limits=SILENT_SOON)
        finally:
            os.close(write)
            reader.join()
            os.close(read)
        assert failure(run) == "the helper ended with exit status 7"

    def test_a_late_answer_is_a_refusal_and_an_abort(self) -> None:
        limits = Limits(callback=0.3)
        steps = scripted("start", "suspend", "until_abort", "logdirty_off", "fail")
        run = run_helper(steps, {"suspend": lambda _: None}, limits=limits)
        assert "no answer to suspend within 0.3 s" in failure(run, Error.TIMEDOUT, completed=True)
        assert "switch_qemu_logdirty" in run.names

    def test_no_end_after_complete(self) -> None:
        run = run_helper(scripted("start", "complete", "hang"), limits=Limits(abort=0.3))
        assert "did not end within 0.3 s" in failure(run, Error.TIMEDOUT, completed=True)

    def test_no_end_after_an_abort(self) -> None:
        run = run_helper(
            scripted("start", "policy", "hang"),
            {"precopy_policy": abort_soon},
            limits=Limits(abort=0.3),
        )
        assert failure(run, Error.ABORTED) == "on request"


def abort_soon(run: Run) -> int:
    asyncio.get_running_loop().call_soon(run.helper.abort, Error.ABORTED, "on request")
    return 0


class TestAbort:
    def test_the_error_path_runs(self) -> None:
        steps = scripted("start", "policy", "until_abort", "logdirty_off", "fail")
        run = run_helper(steps, {"precopy_policy": abort_soon})
        assert failure(run, Error.ABORTED, completed=True) == "on request"
        assert run.result is not None
        assert run.result.retval == -1
        assert "switch_qemu_logdirty" in run.names

    def test_the_outstanding_callback_is_refused(self) -> None:
        answered_late: list[bool] = []

        def abort(run: Run) -> None:
            run.helper.abort(Error.ABORTED)
            run.helper.async_callback_done(1, "suspend")
            answered_late.append(True)

        steps = scripted("start", "suspend", "until_abort", "logdirty_off", "fail")
        run = run_helper(steps, {"suspend": abort})
        failure(run, Error.ABORTED, completed=True)
        assert answered_late

    def test_a_sync_callback_that_aborts_is_refused_once(self) -> None:
        faults: list[object] = []

        def abort(run: Run) -> int:
            asyncio.get_running_loop().set_exception_handler(lambda _, told: faults.append(told))
            run.helper.abort(Error.ABORTED, "on request")
            return 0

        steps = scripted("start", "policy", "until_abort", "logdirty_off", "fail")
        run = run_helper(steps, {"precopy_policy": abort})
        assert failure(run, Error.ABORTED, completed=True) == "on request"
        assert not faults

    def test_later_callbacks_are_refused_too(self) -> None:
        steps = scripted("start", "policy", "until_abort", "suspend", "logdirty_off", "fail")
        run = run_helper(steps, {"precopy_policy": abort_soon})
        failure(run, Error.ABORTED, completed=True)
        assert "suspend" not in run.names

    @pytest.mark.parametrize("event", ["helper_started", "helper_ready", "callback"])
    def test_at_each_stage(self, event: str) -> None:
        run = run_helper(
            scripted("start", "policies", "fail"),
            at={event: lambda run: run.helper.abort(Error.ABORTED, "on request")},
        )
        assert run.result is not None
        assert (run.result.rc, run.result.reason) == (Error.ABORTED, "on request")
        assert reaped(run)

    def test_before_the_start(self) -> None:
        async def abort_first() -> list[HelperResult]:
            results: list[HelperResult] = []
            request = HelperRequest(Operation.SAVE, 1, 0)
            trace = Trace("controller")
            helper = SaveHelper(request, {}, results.append, limits=QUICK, trace=trace)
            helper.abort(Error.ABORTED, "on request")
            helper.start()
            await asyncio.sleep(0)
            assert not helper.running
            return results

        (result,) = asyncio.run(abort_first())
        assert (result.rc, result.reason) == (Error.ABORTED, "on request")

    def test_after_complete_it_is_the_aborts_rc(self) -> None:
        def abort(run: Run) -> None:
            run.helper.abort(Error.ABORTED, "on request")

        run = run_helper(
            scripted("start", "complete", "until_abort"), at={"answer": abort}, limits=QUICK
        )
        failure(run, Error.ABORTED, completed=True)


class TestACallerThatFails:
    def test_what_cannot_be_asked_for_is_named(self) -> None:
        request = HelperRequest(Operation.SAVE, -1, -1)
        assert "start: field domid: -1" in failure(run_helper(scripted("start"), request=request))

    @pytest.mark.parametrize("name", ["precopy_policy", "suspend", "log"])
    def test_a_handler_that_raises_ends_the_save_in_order(self, name: str) -> None:
        def fail(_run: Run) -> int:
            raise RuntimeError("a bug of the caller's")

        steps = scripted("start", "log", "policy", "suspend", "until_abort", "logdirty_off", "fail")
        run = run_helper_with_faults(steps, {name: fail})
        assert f"the {name} callback failed" in failure(run, completed=True)
        assert "switch_qemu_logdirty" in run.names

    @pytest.mark.parametrize("value", [None, 2**31, "1", 1.0])
    def test_an_invalid_answer_ends_the_save_in_order(self, value: object) -> None:
        def wrong(_run: Run) -> int:
            return value

        steps = scripted("start", "policy", "until_abort", "logdirty_off", "fail")
        run = run_helper_with_faults(steps, {"precopy_policy": wrong})
        assert "the precopy_policy callback failed" in failure(run, completed=True)


def run_helper_with_faults(program: OwnHelper, reactions: dict[str, Reaction]) -> Run:
    """Run a helper as `run_helper` does; the event loop's handler must get the callbacks' bugs."""
    faults: list[str] = []

    def note(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        faults.append(str(context["message"]))

    def listening(react: Reaction) -> Reaction:
        def wrapped(run: Run) -> int | None:
            asyncio.get_running_loop().set_exception_handler(note)
            return react(run)

        return wrapped

    run = run_helper(program, {name: listening(react) for name, react in reactions.items()})
    assert {*faults} == {f"the {name} callback failed" for name in reactions}
    return run


class Guests:
    """The callbacks of a save of a simulated guest."""

    def __init__(self, host: SimulatedHost, domid: int) -> None:
        self.host = host
        self.domid = domid

    def reactions(self) -> dict[str, Reaction]:
        return {
            "suspend": self.suspend,
            "switch_qemu_logdirty": self._logdirty,
            "precopy_policy": lambda _: PrecopyPolicy.STOP_AND_COPY,
        }

    def suspend(self, run: Run) -> None:
        run.helper.async_callback_done(suspend(self.host, self.domid))

    def _logdirty(self, run: Run) -> None:
        enable = bool(run.heard[-1][1]["enable"])
        self.host.switch_qemu_logdirty(self.domid, enable)
        run.helper.async_callback_done(0)


OWN_IN_LIBXLS_PLACE = Path(sys.executable).parent / "xen-save-helper"
PROGRAMS = [OwnHelper(), *(PipeHelper(OWN_IN_LIBXLS_PLACE, dialect) for dialect in Dialect)]


class TestOurHelper:
    @pytest.mark.parametrize("program", PROGRAMS, ids=str)
    def test_a_guest_is_saved_and_restored(
        self, host: SimulatedHost, tmp_path: Path, program: OwnHelper | PipeHelper
    ) -> None:
        domid = host.create_guest("g", MEMORY, "random", type="pvh")
        uri = f"sim:{host.directory}"
        with (tmp_path / "stream").open("w+b") as stream:
            request = HelperRequest(
                Operation.SAVE, domid, stream.fileno(), xcflags=XCFlags.LIVE, hypervisor=uri
            )
            reactions = Guests(host, domid).reactions()
            saved = run_helper(program, reactions, request=request, limits=Limits())
            assert saved.result is not None
            assert (saved.result.rc, saved.result.retval, saved.result.reason) == (0, 0, "")
            stream.seek(0)
            config = host.config(domid)
            host.destroy(domid)
            restored = host.create(config, "g")
            request = HelperRequest(Operation.RESTORE, restored, stream.fileno(), hypervisor=uri)
            reactions = {"restore_results": lambda _: None, "static_data_done": lambda _: 0}
            run = run_helper(program, reactions, request=request, limits=Limits())
        assert run.result is not None
        assert (run.result.rc, run.result.retval, run.result.reason) == (0, 0, "")
        if isinstance(program, OwnHelper):
            assert saved.result.statistics is not None
            assert saved.result.statistics.pages > 0
        host.unpause(restored)
        report = host.verify(restored, 20)
        assert (report.state, report.memory_ok) == (GuestState.RUNNING, True)

    def test_one_that_is_stopped_on_libxls_pipes_is_continued(
        self, host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", "suspend:after-send=stop")
        domid = host.create_guest("g", MEMORY, "idle")
        with open(os.devnull, "wb") as stream:
            request = HelperRequest(
                Operation.SAVE,
                domid,
                stream.fileno(),
                xcflags=XCFlags.LIVE,
                hypervisor=f"sim:{host.directory}",
            )
            run = run_helper(
                PipeHelper(OWN_IN_LIBXLS_PLACE, Dialect.MAINLINE),
                Guests(host, domid).reactions(),
                request=request,
                limits=Limits(stopped=1.5),
            )
        assert run.result is not None
        assert (run.result.rc, run.result.retval) == (0, 0), run.result
        assert len(run.stood_still) == 1
        (row,) = host.domains()
        assert not row.log_dirty

    def test_the_stream_may_be_standard_input(self, host: SimulatedHost) -> None:
        domid = host.create_guest("g", MEMORY, "idle")
        request = HelperRequest(Operation.RESTORE, domid, 0, hypervisor=f"sim:{host.directory}")
        run = run_helper(OwnHelper(), {"restore_results": lambda _: None}, request=request)
        assert run.result is not None
        assert run.result.rc == 0
        assert run.result.retval == -1

    @pytest.mark.usefixtures("own_interpreters")
    def test_neither_a_save_nor_a_restore_loads_numpy(
        self, host: SimulatedHost, tmp_path: Path
    ) -> None:
        """A small guest would wait longer for that than for its pages."""
        mapped: list[str] = []

        def look(run: Run) -> None:
            mapped.append(Path(f"/proc/{run.pid}/maps").read_text())

        domid = host.create_guest("g", MEMORY, "idle")
        guests, uri = Guests(host, domid), f"sim:{host.directory}"

        def suspend_and_look(run: Run) -> None:
            look(run)
            guests.suspend(run)

        with (tmp_path / "stream").open("w+b") as stream:
            request = HelperRequest(Operation.SAVE, domid, stream.fileno(), hypervisor=uri)
            reactions = {**guests.reactions(), "suspend": suspend_and_look}
            run_helper(OwnHelper(), reactions, request=request)
            stream.seek(0)
            new = host.create(host.config(domid), "new")
            request = HelperRequest(Operation.RESTORE, new, stream.fileno(), hypervisor=uri)
            run = run_helper(OwnHelper(), {"restore_results": look}, request=request)
        assert run.result is not None
        assert run.result.rc == 0
        assert len(mapped) == 2
        assert all("zmq" in maps and "numpy" not in maps for maps in mapped)

    @pytest.mark.parametrize(
        ("change", "what"),
        [({"bandwidth": 1}, "no bandwidth limit"), ({"postcopy": True}, "has no postcopy")],
    )
    def test_what_libxls_protocol_lacks_is_refused(self, change: dict[str, int], what: str) -> None:
        request = HelperRequest(Operation.SAVE, 1, 0, **change)
        program = PipeHelper(OWN_IN_LIBXLS_PLACE, Dialect.MAINLINE)
        run = run_helper(program, request=request)
        assert run.result is not None
        assert run.result.rc == Error.FAIL
        assert what in run.result.reason
