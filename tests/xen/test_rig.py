"""The rig's own judgement: what is the emulator's fault, and what is not."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.xen.dom0 import kernel_log
from tests.xen.emulator import SILENCE_SECONDS, is_frozen
from tests.xen.images import SUITES
from tests.xen.runner import SCENARIOS_PER_BOOT, batches, longest_first
from tests.xen.scenarios import SCENARIOS, cases


@pytest.mark.parametrize(
    ("silence", "used", "frozen"),
    [
        (SILENCE_SECONDS, 0.1, True),
        (3 * SILENCE_SECONDS, 1.0, True),
        (SILENCE_SECONDS - 1, 0.0, False),
        (SILENCE_SECONDS, SILENCE_SECONDS / 2, False),
    ],
    ids=["idle and silent", "for long", "not for long enough", "busy and silent"],
)
def test_a_frozen_emulator_is_idle_and_silent(silence: float, used: float, frozen: bool) -> None:
    assert is_frozen(silence, used) is frozen


def test_crashed_programs_are_found_in_the_kernel_log() -> None:
    lines = [
        "xl[412]: segfault at 8 ip 00007f2b5c3d sp 00007ffd error 4 in libxenlight.so.4.17[1+2]",
        "traps: xenstored[185] general protection fault ip:55 sp:77 error:0 in xenstored[55+1]",
        "traps: sh[9] trap invalid opcode ip:55 sp:77 error:0 in dash[55+1]",
        "xen-save-helper[77]: segfault at 0 ip 00 sp 00 error 6",
        "EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.",
    ]
    found = [fault["program"] for fault in kernel_log.faults(lines)]
    assert found == ["xl", "xenstored", "sh", "xen-save-helper"]


def test_scenarios_have_names_of_their_own_and_known_suites() -> None:
    names = Counter(scenario.name for scenario in SCENARIOS)
    assert names.most_common(1)[0][1] == 1
    assert {suite for scenario in SCENARIOS for suite in scenario.suites} <= set(SUITES)


def test_a_batch_is_of_one_setup_and_every_case_is_in_one() -> None:
    wanted = cases(list(SUITES))
    made = batches(wanted)
    assert [case for batch in made for case in batch] == wanted
    for batch in made:
        assert len(batch) <= SCENARIOS_PER_BOOT
        assert len({case.setup for case in batch}) == 1


def test_the_batch_that_may_take_longest_is_begun_first() -> None:
    made = batches(cases(list(SUITES)))
    order = longest_first(made)
    assert sorted(map(id, order)) == sorted(map(id, made))
    limits = [sum(case.scenario.limit for case in batch) for batch in order]
    assert limits == sorted(limits, reverse=True)
