"""Which machine runs what, and what is run again: never a scenario that failed, at most twice one
that the emulator spoiled."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.xen.emulator import Setup
from tests.xen.images import SUITES, image
from tests.xen.machine import EmulatorError, Machine, MachineError, Outcome
from tests.xen.report import Row, print_table, tell_faults
from tests.xen.scenarios import Case, cases
from tests.xen.shadow_xen import shadow_xen
from tests.xen.wheel import wheel

SCENARIOS_PER_BOOT: Final = 6
"""A boot costs half a minute; a fresh one every now and then keeps a fault from spreading."""
RETRIES: Final = 2


def setup_of(suite: str, shadow: bool, hvm: bool) -> Setup:
    """The machine for a scenario; makes image and hypervisor where there are none."""
    made = image(SUITES[suite])
    return Setup(made, shadow_xen(made.suite) if shadow else made.xen, hvm)


class Machines:
    """One machine at a time: booted when needed, kept for some scenarios of the same setup."""

    def __init__(self, directory: Path) -> None:
        """`directory` (there) gets a directory for each boot."""
        self.boots = 0
        self.spoiled: list[str] = []
        self._directory = directory
        self._machine: Machine | None = None
        self._setup: Setup | None = None
        self._ran = 0

    def run(self, case: Case) -> Outcome:
        """Raises EmulatorError where the emulator spoiled it three times; MachineError where dom0
        went down under it."""
        scenario = case.scenario
        setup = setup_of(case.suite, scenario.shadow, scenario.hvm)
        for attempt in range(RETRIES + 1):
            try:
                return self._ready(setup).run_scenario(scenario.name, scenario.limit)
            except EmulatorError as spoiled:
                self.close()
                self.spoiled.append(f"{scenario.name} ({case.suite}): {spoiled}")
                print(f"tests.xen: the emulator failed, not {scenario.name}: {spoiled}", flush=True)
                if attempt == RETRIES:
                    raise
            except MachineError:
                self.close()
                raise
        raise AssertionError("not reached")

    def close(self) -> None:
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    def _ready(self, setup: Setup) -> Machine:
        full = self._ran >= SCENARIOS_PER_BOOT
        if self._machine is not None and (full or setup != self._setup or not self._machine.usable):
            self.close()
        if self._machine is None:
            self.boots += 1
            directory = Path(tempfile.mkdtemp(prefix="boot-", dir=self._directory))
            self._machine = Machine(setup, wheel(), directory)
            self._setup, self._ran = setup, 0
            print(
                f"tests.xen: Xen {self._machine.xen} up after {self._machine.boot_seconds:.0f} s "
                f"(of that {self._machine.install_seconds:.0f} s to install the package)",
                flush=True,
            )
        self._ran += 1
        return self._machine


def run_scenarios(names: list[str], suites: list[str], jobs: int, keep: Path | None) -> int:
    """Run scenarios (all where `names` is empty) on `suites`, on `jobs` machines at once, print
    the table; 0 if there were some and all passed."""
    wanted = [case for case in cases(suites) if not names or case.scenario.name in names]
    order = longest_first(batches(wanted))
    with _directory(keep) as directory, ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda batch: _run_batch(batch, directory), order))
        row_of = {
            case: row
            for batch, ended in zip(order, done, strict=True)
            for case, row in zip(batch, ended.rows, strict=True)
        }
        rows = [row_of[case] for case in wanted]
        tell_faults(rows, directory)
    print_table(
        rows,
        sum(batch.boots for batch in done),
        [spoiled for batch in done for spoiled in batch.spoiled],
    )
    return 0 if rows and all(row.passed for row in rows) else 1


def batches(wanted: Sequence[Case]) -> list[list[Case]]:
    """Cases that share a boot: of one setup, and not too many."""
    made: list[list[Case]] = []
    for case in wanted:
        if made and made[-1][0].setup == case.setup and len(made[-1]) < SCENARIOS_PER_BOOT:
            made[-1].append(case)
        else:
            made.append([case])
    return made


def longest_first(made: Sequence[list[Case]]) -> list[list[Case]]:
    """By what they may take: or one machine is at work on a long one when all others are idle."""
    return sorted(made, key=lambda batch: -sum(case.scenario.limit for case in batch))


@dataclass(frozen=True)
class _Batch:
    rows: list[Row]
    boots: int
    spoiled: list[str]


def _run_batch(batch: list[Case], directory: Path) -> _Batch:
    machines = Machines(directory)
    try:
        rows = [_run_one(machines, case) for case in batch]
    finally:
        machines.close()
    return _Batch(rows, machines.boots, machines.spoiled)


def run_script(
    script: Path, suite: str, shadow: bool, hvm: bool, limit: float, keep: Path | None
) -> int:
    """Boot, run a script, print what it says; 0 if it ended with 0.

    Raises EmulatorError, MachineError.
    """
    with _directory(keep) as directory:
        machine = Machine(setup_of(suite, shadow, hvm), wheel(), directory)
        try:
            print(f"tests.xen: Xen {machine.xen} up after {machine.boot_seconds:.0f} s", flush=True)
            outcome = machine.run_script(script, limit, _say)
        finally:
            machine.close()
    for line in outcome.faults:
        print(f"tests.xen: crashed: {line}")
    print(f"tests.xen: {outcome.outcome} after {outcome.seconds:.1f} s")
    return 0 if outcome.outcome == "passed" else 1


def _run_one(machines: Machines, case: Case) -> Row:
    name = case.scenario.name
    print(f"tests.xen: {case.suite}: {name} ...", flush=True)
    try:
        outcome = machines.run(case)
    except (EmulatorError, MachineError) as lost:
        print(f"tests.xen: {name}: {lost}", flush=True)
        kind = "emulator" if isinstance(lost, EmulatorError) else "lost"
        return Row(case.suite, name, kind, 0.0, {})
    if outcome.outcome != "passed":
        print(explained(outcome), flush=True)
    print(
        f"tests.xen: {case.suite}: {name}: {outcome.outcome} ({outcome.seconds:.0f} s)", flush=True
    )
    return Row(case.suite, name, outcome.outcome, outcome.seconds, outcome.figures, outcome.table)


def explained(outcome: Outcome) -> str:
    """What a scenario that did not pass has said, and dom0's kernel while it ran."""
    lines = [outcome.output.rstrip(), *(f"dom0 kernel: {line}" for line in outcome.kernel[-15:])]
    lines += [f"could not be cleared away: {what}" for what in outcome.left_over]
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="xen-rig-") as scratch:
            yield Path(scratch)
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
