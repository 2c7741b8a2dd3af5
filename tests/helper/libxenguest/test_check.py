"""What `--check` says about Xen's libraries."""

from __future__ import annotations

import os

from tests.helper.test_main import by_hand


def test_the_libraries_that_it_would_use_are_named(xen: str) -> None:
    done = by_hand("--check", LD_LIBRARY_PATH=xen, XEN_SAVE_HELPER_CONFIG=os.devnull)
    assert done.returncode == 0, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("found Xen "))
    assert f"{xen}/libxenguest.so." in line
