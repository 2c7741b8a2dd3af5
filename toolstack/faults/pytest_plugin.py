"""pytest: a save helper that fails as a test wants it to.

The marker `xen_faults` says how (the plans of `xen-toolstack faults list`), the fixture
`xen_save_helper` is the helper (`toolstack.faults.helper_program.FaultyHelper`): its `program` for
our API, its `executable` for LIBXL_SAVE_HELPER and so for any user of libxl.

    @pytest.mark.xen_faults("phase.stop-and-copy=kill")
    def test_a_save_whose_helper_dies(xen_save_helper):
        ...
        assert xen_save_helper.fired == ["phase.stop-and-copy=kill"]

The nearest marker counts: a function's before its class's. Without a marker the helper has no
faults. An invalid plan is an error of the collection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

# pytest loads this at each start wherever the package is installed; all else is imported when used.
import pytest

if TYPE_CHECKING:
    from xen_save_helper.ipc_schema.faults.plan import Plan
    from xen_save_helper.toolstack.faults.helper_program import FaultyHelper

MARKER: Final = "xen_faults"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(plan): the faults of the test's `xen_save_helper`, as "
        "'postcopy_transition:before-answer=kill' (see `xen-toolstack faults list`)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for marker in metafunc.definition.iter_markers(MARKER):
        if wrong := _what_is_wrong(marker):
            name = metafunc.definition.nodeid
            raise pytest.Collector.CollectError(f"{name}: {wrong}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check the markers of parameters, which `pytest_generate_tests` does not see."""
    wrong = [
        f"{item.nodeid}: {reason}"
        for item in items
        for marker in item.iter_markers(MARKER)
        if (reason := _what_is_wrong(marker))
    ]
    if wrong:
        raise pytest.UsageError("\n".join(wrong))


@pytest.fixture
def xen_save_helper(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FaultyHelper]:
    """Our save helper with the faults of the test's marker `xen_faults`. Its processes end with
    the test, even if they are stopped."""
    from xen_save_helper.toolstack.faults.helper_program import FaultyHelper

    marker = request.node.get_closest_marker(MARKER)
    plan = None if marker is None else _plan_of(marker)
    helper = FaultyHelper(tmp_path_factory.mktemp("xen-save-helper"), plan)
    if helper.plan is not None:
        # The plan has the seed that was drawn, so that its report is enough to repeat a failure.
        request.node.add_report_section("setup", MARKER, str(helper.plan))
    yield helper
    helper.kill()


def _what_is_wrong(marker: pytest.Mark) -> str:
    from xen_save_helper.ipc_schema.faults.plan import PlanError

    try:
        _plan_of(marker)
    except PlanError as wrong:
        return f"{MARKER}: {wrong}"
    return ""


def _plan_of(marker: pytest.Mark) -> Plan:
    """Raises PlanError."""
    from xen_save_helper.ipc_schema.faults.plan import PlanError
    from xen_save_helper.toolstack.faults.helper_program import helper_plan

    if len(marker.args) != 1 or marker.kwargs or not isinstance(marker.args[0], str):
        raise PlanError(f"want one plan, a text, as in {MARKER}('suspend:before-answer=kill')")
    return helper_plan(marker.args[0])
