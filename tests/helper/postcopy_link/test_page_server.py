"""A page server by itself; `tests/whole/test_postcopy_link.py` has it among the others."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

from xen_save_helper.helper.postcopy_link.page_server import _do_not_die
from xen_save_helper.ipc_schema.trace import Trace

NOBODY = 65534


def test_a_kernel_that_does_not_spare_it_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "events"
    with file.open("wb", buffering=0) as events:
        pid = os.fork()
        if not pid:
            try:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
                os.setresuid(NOBODY, NOBODY, NOBODY)
                _do_not_die(Trace("page server", events.write))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    told = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["what"] for line in told if line["event"] == "not_spared"] == [
        "mlockall",
        "oom_score_adj",
    ]
