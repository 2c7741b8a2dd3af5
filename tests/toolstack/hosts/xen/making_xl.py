"""An `xl restore` as a domain's maker sees it: takes the stream up to libxc's part, starts the save
helper as libxl does, and what comes after it. What it was told is in the file REPORT at the end.

    python -m tests.toolstack.hosts.xen.making_xl HOW
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from tests.helper.libxl_side import cbflags, started
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation
from xen_save_helper.ipc_schema.streams import libxl_stream, records, xl_header
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType

COMPLAINT = "libxl: error: libxl_create.c:1:f: there is no memory"


def main(how: str) -> int:
    if how == "fails":
        print(COMPLAINT, file=sys.stderr)
        return 3
    if how == "waits":
        time.sleep(600)
    told: dict[str, Any] = {"config": _config()}
    libxl_stream.decode_header(_read(libxl_stream.HEADER_SIZE))
    assert _record()[0] is RecordType.LIBXC_CONTEXT
    told["helper"] = _helper()
    if told["helper"][-1][1]["retval"]:
        print("libxl: error: libxl_create.c:2:f: the helper failed", file=sys.stderr)
        status = 1
    else:
        told["records"] = []
        while not told["records"] or told["records"][-1][0] != "END":
            kind, body = _record()
            told["records"].append((kind.name, body.hex()))
        status = 0
    with open(os.environ["REPORT"], "w") as report:
        json.dump(told, report)
    return status


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        assert part, "the stream ends early"
        data += part
    return data


def _config() -> Any:
    fields = xl_header.decode_header(_read(xl_header.HEADER_SIZE))
    data = xl_header.decode_optional_data(fields, _read(fields.optional_data_len))
    return json.loads(data.rstrip(b"\0"))


def _record() -> tuple[RecordType, bytes]:
    number, length = records.decode_record_header(_read(records.HEADER_SIZE), "record", 0)
    kind = libxl_stream.record_type(number, 0)
    assert kind is not None
    return kind, _read(length + records.padding(length))[:length]


def _helper() -> list[tuple[str, dict[str, Any]]]:
    request = HelperRequest(
        Operation.RESTORE, 7, 0, store_evtchn=1, store_domid=2, console_evtchn=3, console_domid=4
    )
    flags = cbflags(Dialect.MAINLINE, "static_data_done", "restore_results")
    arguments = HelperArguments(request, Dialect.MAINLINE, flags)
    heard = []
    with started(arguments, command=[os.environ["LIBXL_SAVE_HELPER"]]) as libxl:
        while not heard or heard[-1][0] != "complete":
            heard.append(libxl.hear())
            if heard[-1][0] != "restore_results":
                libxl.answer(0)
        assert libxl.exit_status() == 0
    return heard


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
