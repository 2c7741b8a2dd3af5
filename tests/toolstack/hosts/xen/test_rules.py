"""The Xen host's decisions that can be tested without a Xen."""

from __future__ import annotations

import pytest

from xen_save_helper.helper.hypervisors.xen.xenctrl import XenDomainInfo
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.xen import xl
from xen_save_helper.toolstack.hosts.xen.domain import state_of
from xen_save_helper.toolstack.hosts.xen.suspend import RequestMethod, method_for


@pytest.mark.parametrize(
    ("kind", "has_channel", "pv_drivers", "s_state", "method"),
    [
        ("pv", False, False, 0, RequestMethod.CONTROL_NODE),
        ("pvh", False, False, 0, RequestMethod.CONTROL_NODE),
        ("hvm", False, True, 0, RequestMethod.CONTROL_NODE),
        ("hvm", False, False, 0, RequestMethod.SHUTDOWN),
        ("hvm", False, True, 3, RequestMethod.SHUTDOWN),
        ("hvm", True, True, 3, RequestMethod.SHUTDOWN),
        ("hvm", True, False, 0, RequestMethod.EVENT_CHANNEL),
        ("pv", True, False, 0, RequestMethod.EVENT_CHANNEL),
        ("pvh", True, True, 0, RequestMethod.EVENT_CHANNEL),
    ],
)
def test_how_a_domain_is_asked_to_suspend(
    kind: str, has_channel: bool, pv_drivers: bool, s_state: int, method: RequestMethod
) -> None:
    """domain_suspend_callback_common."""
    asked = method_for(kind, has_channel=has_channel, pv_drivers=pv_drivers, s_state=s_state)
    assert asked is method


SHUTDOWN, PAUSED = 1 << 2, 1 << 3


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        (0, GuestState.RUNNING),
        (1 << 4, GuestState.RUNNING),
        (PAUSED, GuestState.PAUSED),
        (SHUTDOWN | 2 << 16, GuestState.SUSPENDED),
        (SHUTDOWN | PAUSED | 2 << 16, GuestState.SUSPENDED),
        (SHUTDOWN | 0 << 16, GuestState.SHUT_DOWN),
        (SHUTDOWN | 1 << 16, GuestState.SHUT_DOWN),
        (SHUTDOWN | 5 << 16, GuestState.SHUT_DOWN),
        (SHUTDOWN | 3 << 16, GuestState.CRASHED),
        (SHUTDOWN | 4 << 16, GuestState.CRASHED),
    ],
)
def test_a_domains_state(flags: int, state: GuestState) -> None:
    assert state_of(XenDomainInfo(1, flags, 1, 1, 0, 0, 0, 1, 0, bytes(16))) is state


def test_what_xl_complains_about() -> None:
    lines = [
        "libxl: error: libxl_domain.c:114:libxl__domain_rename: Domain 3:Name taken",
        "libxl: error: libxl_domain.c:180:libxl_domain_rename: Domain 3:later",
        "Can't rename domain 'a'.",
        "",
    ]
    assert xl.complaint(lines) == "Domain 3:Name taken"
    damaged = "xc: error: Failed to read Image Header from stream (0 = Success): Internal error"
    assert xl.complaint([lines[2], damaged, *lines]) == damaged.removeprefix("xc: error: ")
    assert xl.complaint(lines[2:]) == "Can't rename domain 'a'."
    assert xl.complaint([]) == ""
