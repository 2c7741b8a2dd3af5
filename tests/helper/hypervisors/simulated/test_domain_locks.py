"""The locks of a host: waiting for many is not waiting for one that is stuck."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host, host_lock

LIMIT = 0.4


def test_a_lock_that_changes_hands_is_waited_for_longer_than_its_limit(tmp_path: Path) -> None:
    create_host(tmp_path / "host")
    held = threading.Event()

    def hold_again_and_again() -> None:
        for _ in range(8):
            with host_lock(tmp_path / "host", 10):
                held.set()
                time.sleep(LIMIT / 4)  # what a holder does

    holder = threading.Thread(target=hold_again_and_again)
    holder.start()
    held.wait(10)
    with host_lock(tmp_path / "host", LIMIT):
        pass
    holder.join(10)


def test_a_holder_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    create_host(tmp_path / "host")
    with (
        host_lock(tmp_path / "host", 1),
        pytest.raises(TimeoutError, match=f"could not take the lock of host .* within {LIMIT} s"),
        host_lock(tmp_path / "host", LIMIT),
    ):
        pass
