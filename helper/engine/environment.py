"""What every part of the engine works with, beside the domain and the stream."""

from __future__ import annotations

from typing import NamedTuple

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.job import Job, Statistics


class Environment(NamedTuple):
    """`statistics` are kept up to date, also by a save or restore that fails."""

    job: Job
    reporter: Reporter
    abort: Abort
    statistics: Statistics
