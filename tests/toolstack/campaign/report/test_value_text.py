from __future__ import annotations

from xen_save_helper.toolstack.campaign.report.figures import value_text


def test_values_are_shown_as_people_write_them() -> None:
    assert value_text("errnoval", 2**32 - 1) == "-1"
    assert value_text("errnoval", 22) == "22"
    assert value_text("done", 2**32 - 1) == str(2**32 - 1)
    assert value_text("recover said", ["'g' is running here", "gone"]) == (
        "'g' is running here; gone"
    )
    assert value_text("exit code", -9) == "-9"
