"""Real Xen only where it is asked for: `pytest tests/xen`, or a file or test in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.runner import Machines

_HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_xen: boots Xen in an emulator; minutes, and as root")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = [Path(argument.partition("::")[0]).absolute() for argument in config.args]
    if any(path == _HERE or _HERE in path.parents for path in named):
        return
    left_out = [item for item in items if item.get_closest_marker("real_xen")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """Boots what a scenario needs, and keeps it for the next ones."""
    with tempfile.TemporaryDirectory(prefix="xen-rig-") as directory:
        made = Machines(Path(directory))
        yield made
        made.close()
        for spoiled in made.spoiled:
            print(f"the emulator failed: {spoiled}")
