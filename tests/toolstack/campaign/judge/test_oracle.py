"""The oracle judged: each way to break the controller or the helper is caught, and by its word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.toolstack.campaign.runs import run

# A mutant may be a guest's.
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("own_interpreters")]

HERE = Path(__file__).parent / "mutants"

KILLED = "suspend:before-answer=kill"
LOST = "source/postcopy_transition:before-send=drop"
TRANSITIONED = "source/record.libxc.POSTCOPY_PAGE_DATA:write=cut"
REPORT_LOST = "link/handshake.report=cut"
FOREIGN = "source/record.libxc.X86_TSC_INFO:write=wrong-number"
BROKEN = "source/record.libxc.HVM_CONTEXT:write=truncate"
MISUNDERSTOOD = "source.controller/suspend:before-answer=garbage"
RESTORED = "destination/complete:before-send=kill"
SENTENCED = "source.controller/suspend:heard=kill"
UNANSWERED = "source/hello:before-send=garbage; source.controller/refused:after-send=kill"
# Once the guest runs at the destination.
UNSERVED = "page-server/serves=delay(2); page-server/sends#2=kill"
DISCONNECTED = "tunnel/stream@100003=cut"
HARMLESS = "source/hello=delay(0.1)"
# All is sent, and the guest writes on: without the time, a quick machine would leave nothing dirty.
DIRTIED = "source/suspend:before-send=delay(0.5)"
# The guest starts before the first page comes.
LATE_PAGES = "source/record.libxc.POSTCOPY_PAGE_DATA:write=delay(0.5)"
# The receiver, which knows of no page, says that it has all before one comes. The source takes the
# answer that comes twice for that to its list.
UNLISTED = (
    "destination/record.libxc.POSTCOPY_READY:write=duplicate; "
    "destination/record.libxc.POSTCOPY_PFNS:read#*=drop; source/phase.postcopy-pages=delay(1)"
)

CAUGHT = [
    ("forgets-the-rc", "source/exit=kill", "live", r"migrate exited with 0"),
    ("keeps-the-last-rc", "source/exit=delay(100000)", "live", r"rc -3 at the source; right is -9"),
    ("skips-sigkill", "source/exit=delay(100000)", "live", r"1 helpers started at the source, 0"),
    ("completes-twice", KILLED, "live", r"1 helpers started at the source, 2"),
    ("resumes-after-a-transition", TRANSITIONED, "postcopy", r"exited with 1; right is 3"),
    ("resumes-after-go", REPORT_LOST, "live", r"two guests run"),
    ("leaves-log-dirty-on", SENTENCED, "live", r"log-dirty"),
    ("does-not-resume", KILLED, "live", r"does not run at the source"),
    ("destroys-the-inconsistent", TRANSITIONED, "postcopy", r"postcopy-inconsistent is suspended"),
    ("says-no-reason", KILLED, "stop-and-copy", r"says no reason"),
    ("says-another-outcome", TRANSITIONED, "postcopy", r"transition was never"),
    ("leaves-the-copy", KILLED, "live", r"a partial copy is left"),
    ("leaves-the-journal", KILLED, "stop-and-copy", r"a journal was left"),
    ("leaves-the-partial-file", KILLED, "save", r"a temporary file was left"),
    ("keeps-a-broken-file", KILLED, "save", r"the save failed, but there is a file"),
    ("exits-with-another-code", TRANSITIONED, "postcopy", r"exited with 1; right is 3"),
    (
        "recovers-by-guesswork",
        "source.controller/postcopy_transition:after-answer=kill",
        "postcopy",
        r"resumed at the source after it had run",
    ),
    ("takes-no-refusal", "suspend:before-answer=answer(0)", "live", r"migrate exited with 0"),
    ("tells-its-result-twice", HARMLESS, "live", r"completed 2 times|exited with 1; right is 0"),
    ("takes-any-record", FOREIGN, "live", r"migrate exited with 0; right is 1"),
    ("counts-no-pages", UNLISTED, "postcopy", r"crashed|memory of .* is wrong"),
    ("harms-the-source", BROKEN, "stop-and-copy", r"crashed|memory of .* is wrong"),
    ("hides-the-cause", MISUNDERSTOOD, "live", r"does not name the cause"),
    ("loses-dirty-pages", DIRTIED, "live", r"crashed|memory of .* is wrong"),
    (
        "leaves-to-postcopy-what-the-hypervisor-needs",
        LATE_PAGES,
        "postcopy",
        r"crashed\): .*vcpu_info: .* is paged out",
    ),
    ("waits-without-an-end", LOST, "postcopy", r"did not end within"),
    ("lets-nobody-go-on", "source/exit=stop", "live", r"did not end within"),
    ("gives-the-usual-rc", "guest/suspend=refuse", "save", r"rc -3 at the source; right is -8"),
    ("takes-a-known-state-for-undefined", KILLED, "live", r"exited with 4; right is 1"),
    ("sweeps-nothing", UNANSWERED, "save", r"temporary file was left after `recover`"),
    ("leaves-a-process-for-some-seconds", HARMLESS, "save", r"a process was there for \d"),
    ("spoils-the-file-that-it-restores", RESTORED, "save", r"the guest is lost"),
    ("keeps-a-descriptor", KILLED, "live", r"left with descriptors"),
    (
        "receiver-hides-its-failure",
        "destination/complete:before-send=kill",
        "live",
        r"the receiver exited with 0",
    ),
    (
        "recovers-by-guesswork",
        "source.controller/postcopy_transition:after-answer=kill; "
        "destination.controller/record.libxl.POSTCOPY_TRANSITION_END:read=kill",
        "postcopy",
        r"when it might run at the destination",
    ),
    ("resumes-when-pages-are-lost", UNSERVED, "link", r"two guests run|after it had run at"),
    ("takes-lost-pages-for-sent", UNSERVED, "link", r"lost, and the source has let it go"),
    ("says-nothing-again", DISCONNECTED, "link", r"did not end within"),
]
"""(mutant, plan, mode, what the oracle must say)."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("name", "plan", "mode", "says"), CAUGHT, ids=[row[0] for row in CAUGHT])
def test_a_mutant_is_caught(
    name: str, plan: str, mode: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XEN_TEST_MUTANT", name)
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=":")
    verdict = run(plan, mode)
    assert verdict.fired
    assert verdict.kind == "fails"
    assert any(re.search(says, problem) for problem in verdict.problems), verdict.problems


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("plan", "mode"), sorted({(row[1], row[2]) for row in CAUGHT}))
def test_without_the_mutant_it_holds(plan: str, mode: str) -> None:
    verdict = run(plan, mode)
    assert verdict.holds, verdict.problems
