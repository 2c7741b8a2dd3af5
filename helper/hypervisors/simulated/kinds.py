"""The kinds of workload, by name and rate; `workload` has what they write."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final


class Kind(IntEnum):
    IDLE = 0
    SEQUENTIAL = 1
    RANDOM = 2
    WRITE_HEAVY = 3


NAMES: Final = {
    "idle": Kind.IDLE,
    "sequential": Kind.SEQUENTIAL,
    "random": Kind.RANDOM,
    "write-heavy": Kind.WRITE_HEAVY,
}
"""Workloads as named by commands and configurations."""

UNLIMITED: Final = math.inf

DEFAULT_RATES: Final = {
    Kind.IDLE: 0.0,
    Kind.SEQUENTIAL: 2_000.0,
    Kind.RANDOM: 20_000.0,
    Kind.WRITE_HEAVY: UNLIMITED,
}
"""Pages a second."""
