"""Who is to blame for what can be seen when a command ends whose helper had a fault."""

from __future__ import annotations

from typing import Any

import pytest

from tests.xen.dom0.faulted import End, Left, Watched
from tests.xen.dom0.whereabouts import Whereabouts
from tests.xen.scenarios.fault_cases import FaultCase, Right
from tests.xen.scenarios.fault_judgement import Seen, broken_promises, wrongs_of_libxl

FAILS = FaultCase("start=kill", Right.FAILS, "")
SUCCEEDS = FaultCase("start=stop(1)", Right.SUCCEEDS, "")


def seen(**others: Any) -> Seen:
    """`xl` failed by itself, and the guest runs on."""
    usual: dict[str, Any] = {
        "watched": Watched(End.ITSELF, 1, "", 5.0),
        "now": Whereabouts("runs", 3, 1, []),
        "misplaced": "",
        "safe": True,
        "woken": False,
        "left": Left(),
        "fired": 1,
        "through": False,
    }
    return Seen(**(usual | others))


def test_a_failure_that_costs_nothing_is_right() -> None:
    assert wrongs_of_libxl(FAILS, seen()) == []
    assert broken_promises(seen()) == []


@pytest.mark.parametrize(
    ("others", "word"),
    [
        ({"watched": Watched(End.LIMIT, 1, "", 20.0)}, "waits for ever"),
        ({"watched": Watched(End.KILLED, 1, "", 20.0)}, "waits for ever"),
        ({"watched": Watched(End.NEVER, None, "", 90.0)}, "waits for ever"),
        ({"watched": Watched(End.ITSELF, -6, "", 5.0)}, "signal 6"),
        ({"watched": Watched(End.ITSELF, 0, "", 5.0)}, "says success"),
        ({"misplaced": "the guest is suspended"}, "suspended"),
        ({"left": Left(domains=["domain a--incoming"])}, "a domain"),
        ({"left": Left(log_dirty=True)}, "log-dirty"),
        ({"left": Left(traces=["/local/domain/9"])}, "nodes"),
    ],
)
def test_it_is_libxls_wrong(others: dict[str, Any], word: str) -> None:
    (wrong,) = wrongs_of_libxl(FAILS, seen(**others))
    assert word in wrong
    assert broken_promises(seen(**others)) == []


@pytest.mark.parametrize(
    ("others", "word"),
    [
        ({"fired": 0}, "did not fire"),
        ({"safe": False, "now": Whereabouts("is nowhere", 0, 0, [])}, "lost"),
        ({"safe": False, "now": Whereabouts("stands still", 3, 1, [])}, "lost"),
        ({"now": Whereabouts("runs", 3, 2, [])}, "2 guests"),
        ({"left": Left(helpers=["helper process 7"])}, "helper is left"),
        ({"left": Left(log_dirty=True), "through": True}, "log-dirty"),
    ],
)
def test_it_is_our_promise_that_broke(others: dict[str, Any], word: str) -> None:
    (broken,) = broken_promises(seen(**others))
    assert word in broken


def test_a_guest_that_somebody_can_wake_is_not_lost() -> None:
    suspended = seen(safe=False, woken=True, now=Whereabouts("is suspended", 3, 0, []))
    assert broken_promises(suspended) == []


def test_success_is_right_where_nothing_was_lost_by_the_fault() -> None:
    done = Watched(End.ITSELF, 0, "", 9.0)
    assert wrongs_of_libxl(SUCCEEDS, seen(watched=done)) == []
    assert wrongs_of_libxl(SUCCEEDS, seen()) == ["xl says failure"]
