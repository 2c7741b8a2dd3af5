"""What a machine does not have that some tests need: skipped there, but never in CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip the test; where CI is set, fail it. `reason` says how to get what is missing."""
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)
