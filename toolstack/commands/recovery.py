"""recover."""

from __future__ import annotations

import argparse
import sys

from toolstack.commands.common import domid_of, host_of, show
from toolstack.handshake import base_name
from toolstack.outcome import ExitCode
from toolstack.recover import WayOut
from toolstack.recover import recover as recover_guest


def recover(arguments: argparse.Namespace) -> int:
    way_out = None
    if arguments.resume:
        way_out = WayOut.RESUME
    elif arguments.destroy:
        way_out = WayOut.DESTROY
    host = host_of(arguments)
    recoveries = recover_guest(host, arguments.name, way_out)
    if not recoveries:
        name = arguments.name
        if base_name(name) == name:
            domid_of(host, name)
        text = f"nothing was left in the middle for {name!r}"
        show(arguments, [], lambda: print(text))
        return ExitCode.SUCCESS
    rows = [
        {
            "name": recovery.name,
            "role": recovery.role and recovery.role.value,
            "promise": recovery.promise and recovery.promise.value,
            "way": recovery.way.value,
            "done": recovery.done,
            "text": recovery.text,
        }
        for recovery in recoveries
    ]

    def human() -> None:
        for recovery in recoveries:
            if recovery.done:
                print(recovery.text)

    show(arguments, rows, human)
    for recovery in recoveries:
        if not recovery.done:
            print(f"xen-toolstack: {recovery.text}", file=sys.stderr)
    return ExitCode.SUCCESS if all(recovery.done for recovery in recoveries) else ExitCode.FAILED
