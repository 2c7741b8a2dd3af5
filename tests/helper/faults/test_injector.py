from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.faults.injector import Injector
from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.ipc_schema.faults.points import Side


def fired(plan: str, passes: int, point: str = "log:before-send", seed: int = 1) -> list[int]:
    """At which of so many times that the point is passed something fires."""
    injector = Injector(parse(plan).faults, seed, Side.SOURCE)
    return [number for number in range(1, passes + 1) if injector.passes(point)]


def test_times() -> None:
    assert fired("log:before-send=drop", 5) == [1]
    assert fired("log:before-send#3=drop", 5) == [3]
    assert fired("log:before-send#3+=drop", 5) == [3, 4, 5]
    assert fired("log:before-send#*=drop", 3) == [1, 2, 3]
    assert fired("log:before-send#100%=drop", 3) == [1, 2, 3]
    assert fired("log:before-send=drop", 5, "log:after-send") == []


def test_times_of_all_processes() -> None:
    class Counts(dict[str, int]):
        def next(self, fault: str) -> int:
            self[fault] = self.get(fault, 0) + 1
            return self[fault]

    def strikes(plan: str, passes: Sequence[int]) -> list[list[int]]:
        """In each of several processes, at which of so many times."""
        counts = Counts()
        injectors = [Injector(parse(plan).faults, 1, Side.SOURCE, counts.next) for _ in passes]
        return [
            [number for number in range(1, times + 1) if injector.passes("log:before-send")]
            for injector, times in zip(injectors, passes, strict=True)
        ]

    assert strikes("log:before-send#1 of all=drop", (2, 2)) == [[1], []]
    assert strikes("log:before-send#3 of all=drop", (2, 2)) == [[], [1]]
    assert strikes("log:before-send#2+ of all=drop", (2, 2)) == [[2], [1, 2]]
    assert strikes("log:before-send#1=drop", (2, 2)) == [[1], [1]]
    twice = "log:before-send#1 of all=drop; log:before-send#1 of all=drop"
    assert strikes(twice, (1, 1)) == [[1], []], "one that stands twice counts for itself"


@given(st.integers(0, 2**63 - 1))
def test_chance_is_the_same_with_the_same_seed(seed: int) -> None:
    plan = "log:before-send#30%=drop; log:before-send#30%=garbage"
    first = fired(plan, 40, seed=seed)
    assert first == fired(plan, 40, seed=seed)


def test_chance_keeps_its_promise_and_differs_by_seed_and_fault() -> None:
    counts = [len(fired("log:before-send#30%=drop", 1000, seed=seed)) for seed in range(20)]
    assert min(counts) > 250
    assert max(counts) < 350
    assert len(set(counts)) > 1
    injector = Injector(parse("log:before-send#30%=drop; log:before-send#30%=drop").faults, 1)
    assert {len(injector.passes("log:before-send")) for _ in range(100)} == {0, 1, 2}


def test_what_fires_at_once_fires_in_the_plans_order() -> None:
    plan = parse(
        "suspend:before-send=delay(1); suspend:before-send#2=drop; suspend:before-send=kill"
    )
    injector = Injector(plan.faults, 1)
    first, second = injector.passes("suspend:before-send"), injector.passes("suspend:before-send")
    assert [str(firing.fault.action) for firing in first] == ["delay(1)", "die(KILL)"]
    assert [(str(firing.fault.action), firing.nth) for firing in second] == [("drop", 2)]


def test_a_fault_of_one_side_waits_until_the_side_is_known() -> None:
    faults = parse("source/log:before-send#2=drop; log:after-send=kill").faults
    injector = Injector(faults, 1)
    assert not injector.passes("log:before-send")
    assert injector.passes("log:after-send")
    injector.side = Side.SOURCE
    assert not injector.passes("log:before-send")
    assert injector.passes("log:before-send")
    injector.side = Side.DESTINATION
    assert not injector.passes("log:before-send")


def test_places() -> None:
    faults = parse("stream@9=cut; stream@4=flip; destination/stream@1=cut; back@2=cut").faults
    injector = Injector(faults, 1, Side.SOURCE)
    assert injector.places("stream") == [4, 9]
    assert injector.places("page") == []
    assert injector.has("back")
    assert not injector.has("page")
    assert not injector.passes("stream", 5)
    assert injector.passes("stream", 9)
