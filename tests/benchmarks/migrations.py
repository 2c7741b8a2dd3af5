"""Whole migrations: how long the guest is stopped, and how long a fault takes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

Result = dict[str, Any]
"""What a demo prints as JSON."""


def demo(mode: str, memory: str, workload: str, *more: str) -> Result:
    """Run one `xen-toolstack demo`; return the object that it prints."""
    done = subprocess.run(
        [
            sys.executable, "-m", "xen_save_helper.toolstack.commands.main", "demo", "--json",
            "--mode", mode, "--memory", memory, "--workload", workload, *more,
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the demo ended with {done.returncode}: {done.stderr}")
    result: Result = json.loads(done.stdout)
    return result
