"""All of the demo's ways only where they are asked for: `pytest tests/whole/test_demo.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.left_out import leave_out


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: a demo with a large guest; minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out(config, items, "long", Path(__file__).with_name("test_demo.py"))
