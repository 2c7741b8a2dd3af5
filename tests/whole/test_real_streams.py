"""`inspect` on whole streams of a real Xen.

They are too large for the repository: XEN_STREAMS names their directory. Without them this is
skipped (not in CI); their cuts are tested in tests/toolstack/inspect/test_walk.py.
"""

from __future__ import annotations

import lzma
import shutil
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from tests.streams import parameters, whole
from tests.streams.known import KNOWN, LIVE_ROUNDS
from xen_save_helper.toolstack.inspect.summary import Summary
from xen_save_helper.toolstack.inspect.walk import inspect


@pytest.mark.parametrize("packed", parameters())
def test_inspect_agrees_with_what_is_known(packed: Path | None, tmp_path: Path) -> None:
    packed = whole(packed)
    known = KNOWN[packed.name.removesuffix(".xl.xz")]
    summary = Summary()
    names: list[str] = []
    rounds: Counter[int] = Counter()
    file = tmp_path / "stream"
    with lzma.open(packed) as source, file.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 24)
    with file.open("rb") as stream:
        for entry in inspect(stream, summary):
            names.append(f"{entry.layer} {entry.name}")
            if entry.name == "PAGE_DATA":
                rounds[entry.summary["round"]] += entry.summary["pages"]
    size = file.stat().st_size
    file.unlink()

    assert [name for name, _ in groupby(names)] == known.names
    assert summary.octets == size
    assert summary.records["libxc PAGE_DATA"] == known.records
    assert summary.distinct_pfns == known.p2m
    assert summary.distinct_pages == known.present
    listed = summary.pages_with_contents + summary.pages_without_contents
    assert rounds.total() == listed
    # The first round has every pfn once; all others are of pages that were sent before.
    assert rounds[1] == known.p2m
    assert summary.rounds == (LIVE_ROUNDS if known.live else 1)
    repeats = listed - known.p2m
    assert bool(repeats) == known.live
    assert summary.repeated_pfns is not None
    assert (0 < summary.repeated_pfns <= repeats) if known.live else not summary.repeated_pfns
