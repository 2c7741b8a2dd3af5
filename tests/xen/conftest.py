"""Runs tests on a real Xen only on request: `pytest tests/xen`, or a file or test in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.left_out import leave_out
from tests.xen.runner import Machines


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_xen: boots Xen in an emulator; minutes, and as root")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    leave_out(
        config,
        items,
        "real_xen",
        lambda _, named: any(path == here or here in path.parents for path in named),
    )


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """Machines, which boot when a scenario first needs one and are kept for later scenarios."""
    with tempfile.TemporaryDirectory(prefix="xen-rig-") as directory:
        made = Machines(Path(directory))
        yield made
        made.close()
        for spoiled in made.spoiled:
            print(f"the emulator failed: {spoiled}")
