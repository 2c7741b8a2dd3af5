"""What every part of the engine needs besides the domain and the stream."""

from __future__ import annotations

from typing import NamedTuple

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.job import Job, Statistics


class Environment(NamedTuple):
    """`statistics` are kept up to date even if the save or restore fails."""

    job: Job
    reporter: Reporter
    abort: Abort
    statistics: Statistics
