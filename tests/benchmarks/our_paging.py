"""Our pager, as bare_paging.c: `python -m tests.benchmarks.our_paging DOMID FIRST PAGES AT_ONCE`.

So many pages are listed at once as the engine lists, and AT_ONCE are loaded at once.
"""

from __future__ import annotations

import sys
import time
from array import array
from typing import cast

from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE, Pfns
from xen_save_helper.helper.hypervisors.xen.domain import XenDomain

_LISTED_AT_ONCE = 1 << 14


def main() -> None:
    domid, first, pages, at_once = map(int, sys.argv[1:])
    domain = XenDomain(domid)
    paging = domain.mem_paging_enable()
    contents = memoryview(b"\1" * (at_once * PAGE_SIZE))
    end = first + pages
    for _ in range(2):
        began = time.process_time_ns()
        for start in range(first, end, _LISTED_AT_ONCE):
            part = range(start, min(start + _LISTED_AT_ONCE, end))
            paging.evict(cast("Pfns", array("Q", part)))
        evicted = time.process_time_ns()
        for pfn in range(first, end, at_once):
            paging.load(pfn, contents)
        loaded = time.process_time_ns()
    print(evicted - began, loaded - evicted)
    paging.close()
    domain.close()


if __name__ == "__main__":
    main()
