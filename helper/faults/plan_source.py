"""A plan as the environment, an option or a settings file gives it."""

from __future__ import annotations

import os
from pathlib import Path

from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError, parse


def read_plan(given: str) -> Plan:
    """The plan in `given`, or in the file that it names after an `@`. Raises PlanError."""
    if not given.startswith("@"):
        return parse(given)
    try:
        text = Path(given[1:]).read_text()
    except (OSError, UnicodeDecodeError) as bad:
        raise PlanError(f"{given}: {getattr(bad, 'strerror', None) or bad}") from None
    try:
        return parse(text).counting_in(f"{os.path.abspath(given[1:])}.counts")
    except PlanError as bad:
        raise PlanError(f"{given}: {bad}") from None
