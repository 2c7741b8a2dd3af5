"""Faults to inject: the points they fire at, what they do, and the plans that name both."""

from typing import Final

PLAN_VARIABLE: Final = "XEN_SAVE_HELPER_FAULTS"
"""The plan of a helper, and of a command whose controller has a part in it."""
