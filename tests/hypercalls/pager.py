"""A pager in a process of its own, which does as it is told:

    python -m tests.hypercalls.pager DOMID

A line is a JSON object: `do`, one of the methods below, and its arguments; so is each answer, with
`result`, or `errno` and `error`. One without either comes first.
"""

from __future__ import annotations

import errno
import json
import select
import sys
from array import array
from dataclasses import astuple
from typing import Any, cast

from xen_save_helper.helper.hypervisors.interface import PagingRequest, Pfns
from xen_save_helper.helper.hypervisors.xen.domain import XenDomain
from xen_save_helper.helper.hypervisors.xen.paging import XenPaging

_WAIT_SECONDS = 15


class _Pager:
    def __init__(self, domid: int) -> None:
        self._domain = XenDomain(domid)
        self._paging: XenPaging | None = None
        self._mapped: list[memoryview] = []

    def enable(self) -> None:
        self._paging = self._domain.mem_paging_enable()

    def evict(self, pfns: list[int]) -> None:
        self._on().evict(cast("Pfns", array("Q", pfns)))

    def requests(self, count: int) -> list[PagingRequest]:
        """Wait for so many. Raises ETIMEDOUT if they do not come."""
        taken: list[PagingRequest] = []
        while len(taken) < count:
            if not select.select([self._on().fileno()], [], [], _WAIT_SECONDS)[0]:
                raise OSError(errno.ETIMEDOUT, f"{len(taken)} requests came, of {count}")
            taken += self._on().take_requests()
        return taken

    def load(self, first: int, byte: int, pages: int) -> None:
        data = b"".join(bytes([(byte + page) % 256]) * 4096 for page in range(pages))
        self._on().load(first, memoryview(data))

    def load_bytes(self, first: int, size: int) -> None:
        self._on().load(first, memoryview(bytes(size)))

    def resume(self, requests: list[tuple[int, int, bool]]) -> None:
        self._on().resume([PagingRequest(*fields[:2], dropped=fields[2]) for fields in requests])

    def map(self, pfns: list[int]) -> None:
        self._mapped += self._domain.foreign_map(cast("Pfns", array("Q", pfns)))

    def unmap(self) -> None:
        self._domain.foreign_unmap(self._mapped)
        self._mapped = []

    def close(self) -> None:
        self._on().close()

    def leave(self) -> None:
        self._domain.close()

    def _on(self) -> XenPaging:
        assert self._paging is not None
        return self._paging


def main() -> None:
    pager = _Pager(int(sys.argv[1]))
    print("{}", flush=True)
    for line in sys.stdin:
        told: dict[str, Any] = json.loads(line)
        try:
            answer = {"result": getattr(pager, told.pop("do"))(**told)}
        except OSError as error:
            answer = {"errno": error.errno, "error": error.strerror}
        print(json.dumps(answer, default=astuple), flush=True)


if __name__ == "__main__":
    main()
