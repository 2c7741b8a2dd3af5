"""When precopy ends: libxl__save_live_migration_precopy_policy, with figures that can be set."""

from __future__ import annotations

import pytest

from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.toolstack.rules.precopy_policy import (
    MemoryStrategy,
    PrecopyDecisions,
    PrecopyProgress,
)

GO_ON = PrecopyPolicy.CONTINUE_PRECOPY


def precopy_policy(
    limits: PrecopyLimits, strategy: MemoryStrategy, *, iteration: int, dirty_count: int
) -> PrecopyPolicy:
    """Return the answer to a first question."""
    return PrecopyDecisions(limits, strategy, lambda: 0.0).ask(iteration, 0, dirty_count).policy


@pytest.mark.parametrize(
    ("iteration", "dirty_count", "ends"),
    [
        (0, -1, False),
        (1, -1, False),
        (1, 51, False),
        (1, 50, True),
        (1, 0, True),
        (4, 51, False),
        (4, -1, False),
        (5, 51, True),
        (5, -1, True),
        (6, 1 << 20, True),
    ],
)
def test_precopy_ends_with_50_dirty_pages_or_after_5_rounds(
    iteration: int, dirty_count: int, ends: bool
) -> None:
    answer = precopy_policy(
        PrecopyLimits(), MemoryStrategy.DEFAULT, iteration=iteration, dirty_count=dirty_count
    )
    assert answer == (PrecopyPolicy.STOP_AND_COPY if ends else GO_ON)


def test_then_memory_strategy_decides() -> None:
    answer = precopy_policy(PrecopyLimits(), MemoryStrategy.POSTCOPY, iteration=5, dirty_count=999)
    assert answer is PrecopyPolicy.POSTCOPY


def test_both_figures_can_be_set() -> None:
    limits = PrecopyLimits(dirty_threshold=1000, max_rounds=2)
    strategy = MemoryStrategy.DEFAULT
    assert precopy_policy(limits, strategy, iteration=1, dirty_count=1001) is GO_ON
    assert precopy_policy(limits, strategy, iteration=1, dirty_count=1000) is not GO_ON
    assert precopy_policy(limits, strategy, iteration=2, dirty_count=1001) is not GO_ON


def test_an_unknown_dirty_count_is_not_few_pages() -> None:
    limits = PrecopyLimits(dirty_threshold=0)
    assert precopy_policy(limits, MemoryStrategy.DEFAULT, iteration=1, dirty_count=-1) is GO_ON


def test_no_rounds_at_all_sends_nothing_before_the_guest_stops() -> None:
    limits = PrecopyLimits(max_rounds=0)
    answer = precopy_policy(limits, MemoryStrategy.POSTCOPY, iteration=0, dirty_count=-1)
    assert answer is PrecopyPolicy.POSTCOPY


class TestDowntime:
    """A guest of 100,000 pages, on a link that takes 25,000 a second."""

    def asked(
        self, limits: PrecopyLimits, strategy: MemoryStrategy, dirty_count: int
    ) -> PrecopyPolicy:
        now = 0.0
        decisions = PrecopyDecisions(limits, strategy, lambda: now)
        assert decisions.ask(0, 0, -1).policy is GO_ON
        now = 4.0
        assert decisions.ask(1, 100_000, -1).policy is GO_ON
        return decisions.ask(1, 100_000, dirty_count).policy

    def test_precopy_ends_once_the_rest_takes_no_longer(self) -> None:
        limits = PrecopyLimits(max_downtime_ms=300)
        assert self.asked(limits, MemoryStrategy.DEFAULT, 7_600) is GO_ON
        assert self.asked(limits, MemoryStrategy.DEFAULT, 7_500) is PrecopyPolicy.STOP_AND_COPY
        assert self.asked(limits, MemoryStrategy.POSTCOPY, 7_500) is PrecopyPolicy.POSTCOPY

    def test_a_migration_that_does_not_converge_is_given_up(self) -> None:
        limits = PrecopyLimits(abort_after=1)
        assert self.asked(limits, MemoryStrategy.DEFAULT, 51) is PrecopyPolicy.ABORT
        assert self.asked(limits, MemoryStrategy.DEFAULT, 50) is PrecopyPolicy.STOP_AND_COPY
        with pytest.raises(ValueError, match="abort_after is 0"):
            PrecopyLimits(abort_after=0)


@pytest.mark.parametrize("name", ["dirty_threshold", "max_rounds", "max_downtime_ms"])
def test_a_negative_figure_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1"):
        PrecopyLimits(**{name: -1})


class TestProgress:
    """A helper keeps asking; 10 s without a page are too many."""

    def test_pages_or_rounds_are_progress(self) -> None:
        progress = PrecopyProgress(10)
        asked = [(0, 0, 0.0), (0, 0, 9.0), (0, 1024, 15.0), (0, 1024, 24.0), (1, 1024, 26.0)]
        for iteration, total_written, now in asked:
            assert progress.objection(iteration, total_written, now) == ""
            progress.answered(GO_ON)

    def test_a_slow_batch_is_progress(self) -> None:
        progress = PrecopyProgress(10)
        for batch in range(5):
            assert progress.objection(0, batch * 1024, batch * 100.0) == ""

    def test_questions_alone_are_not_progress(self) -> None:
        progress = PrecopyProgress(10)
        assert progress.objection(0, 5, 100.0) == ""
        assert progress.objection(0, 5, 109.0) == ""
        assert "for 10 s" in progress.objection(0, 5, 110.0)

    def test_a_question_after_the_end_is_an_error(self) -> None:
        progress = PrecopyProgress(10)
        progress.answered(PrecopyPolicy.STOP_AND_COPY)
        assert "told to end it (STOP_AND_COPY)" in progress.objection(1, 5, 0.0)
