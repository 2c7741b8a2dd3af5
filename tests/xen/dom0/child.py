"""One scenario, in a process of its own: `python -m tests.xen.dom0.child NAME RESULTS`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.xen.dom0 import clean_up
from tests.xen.dom0.commands import wait_until
from tests.xen.dom0.lab import Lab
from tests.xen.scenarios import SCENARIOS

HELPERS = ("xen-save-helper", "libxl-save-helper", "xen-toolstack", "xl save", "xl migrate -s")


def helpers() -> list[str]:
    """The saves, restores and migrations that are running."""
    return [
        command
        for command in clean_up.processes().values()
        if any(name in command for name in HELPERS) and "tests.xen.dom0" not in command
    ]


def main(name: str, results: Path) -> None:
    """Ends with a traceback if the scenario fails or leaves a helper behind."""
    (scenario,) = (scenario for scenario in SCENARIOS if scenario.name == name)
    lab = Lab(results)
    try:
        scenario.run(lab)
        wait_until(f"all helpers end: {helpers()}", lambda: not helpers(), limit=10)
    except BaseException:
        lab.tell_unfinished()
        raise


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
