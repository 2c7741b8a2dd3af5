"""`python -m tests.xen`: see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.xen import host_tools, runner
from tests.xen.cache import slots
from tests.xen.emulator import EmulatorError, MachineError
from tests.xen.images import ORDINARY, SUITES
from tests.xen.scenarios import SCENARIOS


def main() -> int:
    """Returns 0 if all passed, 1 if not, 2 for a usage error."""
    options = _parse()
    if options.list:
        for scenario in SCENARIOS:
            seldom = "".join(f" ({suite})" for suite in scenario.seldom)
            print(f"{scenario.name:50} {' '.join(scenario.suites)}{seldom}")
        return 0
    try:
        if options.script:
            return runner.run_script(
                options.script,
                options.suite or "bookworm",
                options.shadow,
                options.limit,
                options.keep,
            )
        suites = (
            [options.suite] if options.suite else list(SUITES if options.scenarios else ORDINARY)
        )
        seldom = options.all or bool(options.scenarios)
        return runner.run_scenarios(
            options.scenarios, suites, options.jobs, options.keep, seldom=seldom
        )
    except (host_tools.MissingToolsError, EmulatorError, MachineError, TimeoutError) as failed:
        print(f"tests.xen: {failed}", file=sys.stderr)
        return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.xen", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: those of CI")
    parser.add_argument("--all", action="store_true", help="those that are seldom run, too")
    parser.add_argument("--list", action="store_true", help="list their names and suites")
    parser.add_argument("--suite", choices=SUITES, help="this Debian only")
    parser.add_argument(
        "--jobs",
        type=int,
        default=slots(),
        help="machines at once (default: as many as this computer carries, %(default)s)",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep consoles and results here")
    script = parser.add_argument_group("instead of scenarios")
    script.add_argument("--script", type=Path, help="run a Python or bash script in dom0")
    script.add_argument("--shadow", action="store_true", help="on a Xen with shadow paging")
    script.add_argument("--limit", type=float, default=600, help="seconds for it (default: 600)")
    options = parser.parse_args()
    unknown = set(options.scenarios) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        parser.error(f"no such scenario: {' '.join(sorted(unknown))} (see --list)")
    return options


if __name__ == "__main__":
    sys.exit(main())
