"""The command recover."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from xen_save_helper.toolstack.commands.common import (
    complain,
    guest_of,
    host_of,
    is_domid,
    show,
)
from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl.outcome import ExitCode
from xen_save_helper.toolstack.xl.recover import PersonsChoice
from xen_save_helper.toolstack.xl.recover import recover as recover_guest

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import Host


def recover(arguments: argparse.Namespace) -> int:
    choice = None
    if arguments.resume:
        choice = PersonsChoice.RESUME
    elif arguments.destroy:
        choice = PersonsChoice.DESTROY
    host = host_of(arguments)
    name = _name(host, arguments.name)
    recoveries = recover_guest(host, name, choice)
    if not recoveries:
        guest_of(host, name)
        text = f"nothing is left to recover for {name!r}"
        return show(arguments, [], lambda: print(text))
    rows = [
        {
            "name": recovery.name,
            "role": recovery.role and recovery.role.value,
            "promise": recovery.promise and recovery.promise.value,
            "way": recovery.remedy.value,
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
            complain(arguments, recovery.text)
    return ExitCode.SUCCESS if all(recovery.done for recovery in recoveries) else ExitCode.FAILED


def _name(host: Host, text: str) -> str:
    """The name of the guest that `text` names, by its name or a domid; a journal may know the domid
    of a domain that is gone. Raises CommandError for an unknown domid."""
    if not is_domid(text):
        return text
    domid = int(text)
    if all(row.domid != domid for row in host.domains()):
        for entry in journal.entries(host.state_dir):
            if entry.domid == domid:
                return entry.name
    return guest_of(host, text).name
