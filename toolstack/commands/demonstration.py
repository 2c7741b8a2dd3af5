"""demo."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Final

from toolstack.commands.running import limits_of, open_trace, progress_for, run
from toolstack.demo import DemoResult
from toolstack.demo import demo as run_demo
from toolstack.outcome import Outcome
from toolstack.scratch import ScratchDirectory

_VERIFIED: Final = "the guest compared every page at the destination, and runs on"


def demo(arguments: argparse.Namespace) -> int:
    """The events are read to say what happened, so without --events they go to a file that ends
    with the demo."""
    with ScratchDirectory("xen-toolstack-events-") as scratch:
        if arguments.events is None:
            arguments.events = str(scratch.path / "events")
        given = [f"--limit={setting}" for setting in arguments.limit]
        given.append(f"--events={Path(arguments.events).absolute()}")
        with progress_for(arguments, "demo") as progress:
            result = run(
                run_demo(
                    arguments.mode,
                    memory=arguments.memory,
                    workload=arguments.workload,
                    bandwidth=arguments.bandwidth,
                    limits=limits_of(arguments),
                    trace=open_trace(arguments, "controller"),
                    events=Path(arguments.events),
                    receiver_arguments=given,
                    progress=progress,
                )
            )
    return _report(arguments, result)


def _report(arguments: argparse.Namespace, result: DemoResult) -> int:
    migration = result.migration
    if arguments.json:
        extra = {
            "verified": result.verified,
            "first_step_lead_seconds": result.first_step_lead_seconds,
        }
        print(json.dumps({**migration.as_json(), **extra}))
    else:
        rows = [("verified", _VERIFIED)] if result.verified else []
        if result.first_step_lead_seconds is not None:
            rows.append(("first step", _lead(result.first_step_lead_seconds)))
        importlib.import_module("toolstack.commands.display").migration(migration, rows)
    if migration.outcome is not Outcome.SUCCESS:
        line = " ".join(f"{migration.outcome.value}: {migration.reason}".split())
        print(f"xen-toolstack: {line}", file=sys.stderr)
    return migration.exit_code


def _lead(seconds: float) -> str:
    if seconds > 0:
        return f"at the destination {seconds * 1000:.1f} ms before the last page arrived"
    return "only after the last page had arrived"
