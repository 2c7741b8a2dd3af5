"""A program that restores as `xl restore -p` does, as far as the memory: it makes the domain, and
starts the helper that it is told to.

    python -m tests.toolstack.operations.like_xl DIRECTORY

It reads the header of xl's, and the stream, from its stdin.
"""

from __future__ import annotations

import json
import os
import sys

from tests.helper.libxl_side import restore_of, started
from xen_save_helper.ipc_schema.streams import libxl_stream, xl_header
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE as RECORD_HEADER_SIZE
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

HELPER_VARIABLE = "THE_HELPER"


def read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        assert part, "the stream has ended early"
        data += part
    return data


def main(directory: str) -> None:
    header = xl_header.decode_header(read(xl_header.HEADER_SIZE))
    text = xl_header.decode_optional_data(header, read(header.optional_data_len))
    config = json.loads(text.rstrip(b"\0"))
    host = SimulatedHost(directory)
    domid = host.create(config, config["c_info"]["name"])
    # Up to the body of LIBXC_CONTEXT, which is all that comes next.
    read(libxl_stream.HEADER_SIZE + RECORD_HEADER_SIZE)
    command = [os.environ[HELPER_VARIABLE]]
    with started(restore_of(os.dup(0), domid), f"sim:{directory}", command=command) as libxl:
        while libxl.hear()[0] != "complete":
            libxl.answer(0)


if __name__ == "__main__":
    main(sys.argv[1])
