"""The plugin, in a pytest of its own as its users have it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.toolstack.helpers.running_helpers import run_helper
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation
from xen_save_helper.ipc_schema.faults.plan import PlanError
from xen_save_helper.toolstack.faults.helper_program import FaultyHelper, helper_plan
from xen_save_helper.toolstack.helpers.request import PipeHelper

README = Path(__file__).parents[3] / "toolstack/campaign/README.md"


def run_pytest(directory: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a test module of this code; within a minute."""
    (directory / "test_users.py").write_text(textwrap.dedent(code))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=directory,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    (example,) = (block for block in blocks if "xen_faults" in block)
    ended = run_pytest(tmp_path, example, "--strict-markers", "-W", "error")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout


WRONG = {
    "xen_faults('suspend:before-anser=kill')": "before-answer",
    "xen_faults('suspend:before-send=kil')": "close to it: kill",
    "xen_faults('controller/suspend:heard=kill')": "done by the controller",
    "xen_faults('link/stream@0=cut')": "done by the link",
    "xen_faults()": "want one plan",
    "xen_faults(3)": "want one plan, a text",
    "xen_faults(plan='suspend:before-send=kill')": "want one plan",
}


@pytest.mark.parametrize("where", ["function", "parameter"])
def test_wrong_plans_are_errors_of_the_collection(tmp_path: Path, where: str) -> None:
    files = []
    for number, mark in enumerate(WRONG):
        marked, argument = {
            "function": (f"@pytest.mark.{mark}", ""),
            "parameter": (
                f"@pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.{mark})])",
                "n",
            ),
        }[where]
        files.append(tmp_path / f"test_{number}.py")
        files[-1].write_text(
            f"import pytest\n{marked}\ndef test_it({argument}):\n    raise SystemExit('it ran')\n"
        )
    ended = run_pytest(tmp_path, "")
    assert ended.returncode in {pytest.ExitCode.INTERRUPTED, pytest.ExitCode.USAGE_ERROR}
    said = ended.stdout + ended.stderr
    for file, words in zip(files, WRONG.values(), strict=True):
        (line,) = (line for line in said.splitlines() if f"{file.name}::test_it" in line)
        assert words in line
    assert "Traceback" not in said
    assert "INTERNALERROR" not in said


def test_the_marker_is_explained(tmp_path: Path) -> None:
    assert "@pytest.mark.xen_faults(plan)" in run_pytest(tmp_path, "", "--markers").stdout


def test_the_nearest_marker_counts_and_none_is_a_helper_without_faults(tmp_path: Path) -> None:
    ended = run_pytest(
        tmp_path,
        """
        import subprocess
        import pytest

        def code_of(helper):
            arguments = "--connect ipc:///nonexistent --secret-fd 0 --start-limit 0.1".split()
            return subprocess.run([helper.executable, *arguments], input=b"secret").returncode

        @pytest.mark.xen_faults("start=exit(3)")
        class TestIt:
            def test_of_the_class(self, xen_save_helper):
                assert code_of(xen_save_helper) == 3
                assert xen_save_helper.fired == ["start=exit(3)"]

            @pytest.mark.xen_faults("start=exit(4)")
            def test_its_own(self, xen_save_helper):
                assert code_of(xen_save_helper) == 4

        def test_none(xen_save_helper):
            assert code_of(xen_save_helper) == 255
            assert xen_save_helper.fired == []
        """,
    )
    assert ended.returncode == 0, ended.stdout


def test_a_failing_test_shows_what_repeats_it(tmp_path: Path) -> None:
    ended = run_pytest(
        tmp_path,
        """
        import pytest

        @pytest.mark.xen_faults("log:before-send#30%=drop")
        def test_it(xen_save_helper):
            assert xen_save_helper.fired
        """,
    )
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^log:before-send#30%=drop; seed=\d+$", ended.stdout, re.MULTILINE)


def test_it_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    ended = run_pytest(
        tmp_path,
        """
        import sys

        def test_nothing_is_loaded():
            assert "xen_save_helper.toolstack.faults.pytest_plugin" in sys.modules
            ours = {name for name in sys.modules if name.split(".")[0] in
                    {"xen_save_helper", "zmq", "msgpack", "numpy", "construct"}}
            plugin = "xen_save_helper.toolstack.faults.pytest_plugin"
            assert ours == {plugin, *(plugin.rsplit(".", n)[0] for n in (1, 2, 3))}
        """,
    )
    assert ended.returncode == 0, ended.stdout


class TestTheHelper:
    def test_for_our_api(self, tmp_path: Path, runtime_directory: Path) -> None:
        helper = FaultyHelper(tmp_path, helper_plan("hello=exit(7)"))
        run = run_helper(helper.program)
        assert run.result is not None
        assert "7" in run.result.reason
        assert helper.fired == ["hello=exit(7)"]

    def test_in_libxls_place(self, tmp_path: Path, runtime_directory: Path) -> None:
        helper = FaultyHelper(tmp_path, helper_plan("source/start=exit(8); destination/start=kill"))
        program = PipeHelper(helper.executable, Dialect.MAINLINE)
        save = run_helper(program)
        assert save.result is not None
        assert "8" in save.result.reason
        request = HelperRequest(Operation.RESTORE, 1, 0, hypervisor="sim:/nonexistent")
        restore = run_helper(program, {"restore_results": lambda _run: None}, request=request)
        assert restore.result is not None
        assert "signal 9" in restore.result.reason
        assert helper.fired == ["source/start=exit(8)", "destination/start=kill"]

    def test_what_libxls_pipes_do_not_have_is_said_before_it_runs(self, tmp_path: Path) -> None:
        helper = FaultyHelper(tmp_path, helper_plan("hello:before-send=kill"))
        with pytest.raises(PlanError, match="libxl's pipes"):
            assert helper.executable

    def test_a_stopped_one_goes_and_a_stranger_with_its_number_stays(self, tmp_path: Path) -> None:
        helper = FaultyHelper(tmp_path, helper_plan("exit=kill"))
        other = helper.with_plan("start=stop")
        command = [other.executable, "--connect", "ipc:///nonexistent", "--secret-fd", "0"]
        with subprocess.Popen(command) as process:
            assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT) is not None
            assert other.fired == ["start=stop"]
            with (tmp_path / "events").open("a") as events:
                events.write(f'{{"pid": {os.getpid()}, "event": "faults"}}\n{{"pid": 1')
            helper.kill()
            assert process.wait(10) == -signal.SIGKILL
        helper.kill()
        assert psutil.pid_exists(os.getpid())
