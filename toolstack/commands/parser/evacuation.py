"""The command evacuate."""

from __future__ import annotations

import argparse

from xen_save_helper.toolstack.commands.common import positive
from xen_save_helper.toolstack.commands.parser.adding import Adder
from xen_save_helper.toolstack.commands.parser.migration import add_migration_options, add_to
from xen_save_helper.toolstack.commands.parser.shared import add_bandwidth


def add_evacuation_command(command: Adder) -> None:
    evacuate = command(
        "evacuate",
        "evacuate:evacuate",
        "move all guests of a host, or those named, to other hosts",
    )
    evacuate.set_defaults(config=None)
    evacuate.add_argument("names", metavar="NAME", nargs="*", help="default: all guests")
    add_to(evacuate, action="append")
    evacuate.add_argument(
        "--dry-run",
        action="store_true",
        help="only show the plan: which guest goes where, and what cannot move and why",
    )
    evacuate.add_argument(
        "--jobs",
        type=positive,
        default=4,
        metavar="J",
        help="guests on their way at once (default: 4); on Xen at most one for each destination, "
        "since xl there takes one at a time",
    )
    add_bandwidth(evacuate, "bytes per second at most, of all guests together")
    evacuate.add_argument(
        "--weight",
        metavar="NAME=N",
        type=_weight,
        action="append",
        default=[],
        help="a guest's part of the bandwidth, beside 1 of each other one",
    )
    evacuate.add_argument(
        "--order",
        metavar="NAME,...",
        default="",
        help="these first, in this order; the others by their expected time, the shortest first",
    )
    evacuate.add_argument(
        "--stop-on-failure",
        action="store_true",
        help="begin with no other guest once one has failed",
    )
    add_migration_options(evacuate)


def _weight(text: str) -> tuple[str, float]:
    """(name, weight) from `NAME=N`. For argparse."""
    name, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not name or not 0 < weight < float("inf"):
        raise argparse.ArgumentTypeError(
            f"invalid weight {text!r}: want a guest's name, `=` and a number above 0"
        )
    return name, weight
