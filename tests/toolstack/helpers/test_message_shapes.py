"""A type beside the catalogue that has a message's shape has exactly that message's fields.

One class cannot serve both sides: the helper's main program does not pay for dataclasses.
"""

from __future__ import annotations

from dataclasses import fields

import pytest

from xen_save_helper.helper import job
from xen_save_helper.helper.command_line import Options
from xen_save_helper.helper.main import _job_of_start
from xen_save_helper.helper.settings import Settings
from xen_save_helper.ipc_schema.channel.field_checks import FIELD_NAMES
from xen_save_helper.ipc_schema.channel.helper_request import (
    OF_THE_CHANNEL,
    Engine,
    HelperRequest,
)
from xen_save_helper.ipc_schema.channel.messages import (
    CALLBACKS,
    UNCONDITIONAL,
    Operation,
    callback_bit,
    callbacks_of,
)
from xen_save_helper.ipc_schema.channel.turn_taking import ALWAYS_PROVIDED
from xen_save_helper.toolstack.helpers.launch import HelperLaunch
from xen_save_helper.toolstack.helpers.request import OwnHelper, Statistics
from xen_save_helper.toolstack.limits import Limits


def test_statistics() -> None:
    wanted = FIELD_NAMES["statistics"]
    assert tuple(field.name for field in fields(Statistics)) == wanted
    assert set(job.StreamCounts().fields()) == set(wanted)


def test_start() -> None:
    assert set(HelperRequest._fields) == set(FIELD_NAMES["start"]) - OF_THE_CHANNEL


def test_a_field_of_start_that_the_helper_does_not_know_is_an_error() -> None:
    request = HelperRequest(Operation.SAVE, 1, 3)
    launch = HelperLaunch(request, frozenset(), OwnHelper(), Limits())
    start = {**launch.start_fields(), "proof": b""}
    options, settings = Options(), Settings()
    assert _job_of_start(start, options, settings).request.engine is Engine.OWN
    with pytest.raises(TypeError, match="compression"):
        _job_of_start({**start, "compression": 1}, options, settings)


def test_each_callback_has_its_own_bit_or_needs_none() -> None:
    named = [row for row in CALLBACKS if row.name not in UNCONDITIONAL]
    bits = [callback_bit(row, None) for row in named]
    assert len(set(bits)) == len(named)
    assert callbacks_of(sum(bits), None) == {row.name for row in named}
    assert callbacks_of(2**64 - 1, None) == {row.name for row in named}


def test_what_is_always_provided() -> None:
    unasked = {"log", "progress", "complete", "statistics", "page_server", "hello"}
    assert unasked == ALWAYS_PROVIDED
