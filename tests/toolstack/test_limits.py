from __future__ import annotations

import select
from dataclasses import fields

import pytest

from tests.toolstack.helpers.running_helpers import run_helper, scripted
from xen_save_helper.ipc_schema.channel.waits import LONGEST_LIMIT, LONGEST_WAIT
from xen_save_helper.toolstack.limits import Limits


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e300", "1000001", "soon", ""])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match="above 0, and at most 1000000"):
        Limits.parse([f"callback={text}"])


def test_the_longest_ones_fit_whatever_waits(runtime_directory: object) -> None:
    """Every clock of the channel, the watches and the helper takes them."""
    limits = Limits.parse([f"{field.name}={LONGEST_LIMIT}" for field in fields(Limits)])
    run = run_helper(scripted("start", "policy", "complete"), limits=limits)
    assert run.result is not None
    assert run.result.rc == 0, run.result


def test_a_poll_takes_the_longest_wait() -> None:
    poll = select.poll()
    with open("/dev/zero") as ready:
        poll.register(ready, select.POLLIN)
        assert poll.poll(LONGEST_WAIT * 1000)
        with pytest.raises(OverflowError):
            poll.poll(2 * LONGEST_WAIT * 1000)
