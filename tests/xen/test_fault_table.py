"""The table of faults: its plans can be carried out, and it says what was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.xen import fault_table
from tests.xen.dom0.faulted import telling
from tests.xen.fault_table import FaultRow
from tests.xen.scenarios.fault_cases import MIGRATE, RESTORE, SAVE, FaultCase
from xen_save_helper.ipc_schema.faults.actions import on_pipe
from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.ipc_schema.faults.points import Who

ROW = FaultRow(
    xen="4.17.5",
    operation="xl save",
    plan="suspend:before-send=kill",
    rule="fails: the helper died by a signal: ERROR_FAIL",
    status=1,
    message="a | b",
    ended="by itself",
    guest="runs and counts",
    left=[],
    seconds=4.2,
    wrongs=[],
    broken=[],
    output="all\nof it\n",
)
WRONG = FaultRow(**{**vars(ROW), "wrongs": ["waits for ever"], "status": None})


@pytest.mark.parametrize("case", [*SAVE, *RESTORE, *MIGRATE], ids=lambda case: case.plan)
def test_each_plan_can_be_carried_out_over_libxls_pipes(case: FaultCase) -> None:
    plan = parse(case.plan)
    assert all(fault.point.who is Who.HELPER for fault in plan.faults)
    assert all(on_pipe(fault.point, fault.action.kind) for fault in plan.faults)


def test_there_are_thirty_faults_and_more_and_none_twice() -> None:
    for cases in (SAVE, RESTORE, MIGRATE):
        assert len({case.plan for case in cases}) == len(cases)
    assert len(SAVE) + len(RESTORE) + len(MIGRATE) >= 30


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    fault_table.write([ROW, WRONG], tmp_path / "rows")
    assert fault_table.read(tmp_path / "rows") == [ROW, WRONG]
    assert fault_table.read(tmp_path / "none") == []


def test_a_page_has_a_line_for_each_fault() -> None:
    lines = fault_table.markdown([ROW, WRONG]).splitlines()
    rows = [line for line in lines if "suspend:before-send" in line]
    assert len(rows) == 2
    assert "a \\| b" in rows[0]
    assert rows[0].endswith("| libxl right |")
    assert rows[1].endswith("| libxl wrong: waits for ever |")
    assert "libxl right in 1, wrong in 1" in fault_table.text([ROW, WRONG])


def test_the_telling_line_is_how_the_helper_went() -> None:
    said = (
        "Saving to /tmp/saved new xl format (info 0x3/0x0/1000)\n"
        "xen-save-helper: fault: suspend:before-send=kill, time 1\n"
        "libxl: error: libxl_utils.c:505:libxl_read_exactly: file/stream truncated reading ipc msg "
        "header from domain 1 save/restore helper stdout pipe\n"
        "libxl: error: libxl_exec.c:127:libxl_report_child_exitstatus: domain 1 save/restore "
        "helper [219] died due to fatal signal Killed\n"
        "Failed to save domain, resuming domain\n"
        "libxl: error: libxl_dom_suspend.c:666:domain_resume_done: Domain 1:resume failed\n"
    )
    died = "domain 1 save/restore helper [219] died due to fatal signal Killed"
    assert telling(said) == died
    aborted = "xl: libxl.c:158: libxl_ctx_free: Assertion `!libxl__watch_slot_contents' failed."
    assert telling(f"{said}{aborted}\n") == f"{died}; {aborted}"


def test_what_our_helper_says_of_the_cause_comes_first() -> None:
    said = (
        "xen-save-helper: fault: suspend:before-answer=answer(0), time 1\n"
        "xen-save-helper: error: save: [Errno 5] suspend() failed: 0\n"
        "libxl: error: libxl_stream_write.c:347:libxl__xc_domain_save_done: Domain 3:saving "
        "domain: domain responded to suspend request: Input/output error\n"
    )
    ours, libxls = telling(said).split("; ")
    assert ours == "xen-save-helper: error: save: [Errno 5] suspend() failed: 0"
    assert libxls.startswith("saving domain: domain responded")


def test_without_an_error_xls_last_line_is_told() -> None:
    assert telling("Saving to /tmp/saved\nxc: info: done\n\n") == "Saving to /tmp/saved"
    assert telling("") == ""
