"""What is asked of operations from another shell: the files by which they are found."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from xen_save_helper.ipc_schema.control import (
    IDENTITY,
    SOCKET,
    Identity,
    Role,
    encode_line,
    left_by_the_dead,
    lives,
)

ALIVE, DEAD = 7, 4711


def left(*names: str) -> set[str]:
    return set(left_by_the_dead(names, lambda pid: pid == ALIVE))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("serial", [0, 3])
@pytest.mark.parametrize("domid", [-1, 5])
def test_of_a_living_process_nothing_is_left(role: Role, domid: int, serial: int) -> None:
    name = Identity(role, domid, "web", ALIVE, serial=serial).name
    assert left(f".{name}.json", f"{name}.json", f"{name}.sock", f"{name}.pages") == set()


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("domid", [-1, 5])
def test_of_a_dead_one_all_that_does_not_say_that_pages_are_lost(role: Role, domid: int) -> None:
    name = Identity(role, domid, "web", DEAD, serial=1).name
    both = {name + IDENTITY, name + SOCKET}
    says = role in {Role.PAGE_SERVER, Role.PAGER}
    assert left(*both) == (set() if says else both)
    # It was killed before it could be found.
    unfinished = {f".{name}.json", name + SOCKET}
    assert left(*unfinished) == unfinished


@pytest.mark.parametrize(
    "fields",
    [{}, {"role": "cook"}, {"domid": "1"}, {"domid": True}, {"pid": None}, {"domain": 5},
     {"ended": []}, {"serial": 1.5}, {"more": 1}],
)  # fmt: skip
def test_an_identity_is_what_it_says(fields: dict[str, Any]) -> None:
    usual = {"role": "save", "domid": 1, "domain": "web", "pid": 7}
    line = encode_line(usual | fields if fields else {"role": "save"})
    with pytest.raises(ValueError, match=r"no identity|cook"):
        Identity.decode(line)
    assert Identity.decode(encode_line(usual)) == Identity(Role.SAVE, 1, "web", 7)


def test_what_others_keep_there_is_theirs() -> None:
    names = ("notes.json", "a-1-4711.sock", "save-x-4711.json", "save-1-4711.json.bak", ".hidden",
             "save-1-.json", "migrate-1-4711.1")  # fmt: skip
    assert left(*names) == set()


def test_one_that_has_ended_does_not_live_though_nobody_has_asked_for_its_status() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert lives(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert os.path.exists(f"/proc/{process.pid}")
    assert not lives(process.pid)
    process.communicate()
    assert not lives(process.pid)
