"""Skips tests that need something which the machine does not have, but never in CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it if CI is set. `reason` says how to get what is missing."""
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)
