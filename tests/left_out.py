"""Leaves out tests that take long, unless they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

AskedFor = Callable[[pytest.Item, Sequence[Path]], bool]
"""Whether the paths on the command line ask for an item."""


def leave_out(
    config: pytest.Config, items: list[pytest.Item], marker: str, asked_for: AskedFor
) -> None:
    """Deselect the items with the marker that are not asked for."""
    named = [Path(argument.partition("::")[0]).absolute() for argument in config.args]
    left_out = {
        item for item in items if item.get_closest_marker(marker) and not asked_for(item, named)
    }
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
