"""Tests that take so long that they run only where they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest


def leave_out(config: pytest.Config, items: list[pytest.Item], marker: str, where: Path) -> None:
    """Take those with the marker away, unless a path that the command line names is `where` or in
    it."""
    named = [Path(argument.partition("::")[0]).absolute() for argument in config.args]
    if any(path == where or where in path.parents for path in named):
        return
    left_out = [item for item in items if item.get_closest_marker(marker)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
