"""Cuts of real streams (`tests.streams.cut`), and where the whole ones are."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

_HERE = Path(__file__).parent

CUTS = sorted(path.name.removesuffix(".xl.xz") for path in _HERE.glob("*.xl.xz"))

_BESIDE_THE_REPOSITORY = _HERE.parents[2] / "shared" / "streams"


def read_cut(name: str) -> bytes:
    """The stream of this name in `CUTS`."""
    return lzma.decompress((_HERE / f"{name}.xl.xz").read_bytes())


def whole_streams() -> list[Path]:
    """The real streams, xz-compressed: those in the directory that XEN_STREAMS names, or in
    ../shared/streams of the repository; none where neither is there.

    Raises FileNotFoundError where XEN_STREAMS names a directory without streams.
    """
    named = os.environ.get("XEN_STREAMS")
    found = sorted((Path(named) if named else _BESIDE_THE_REPOSITORY).glob("*.xl.xz"))
    if named and not found:
        raise FileNotFoundError(f"XEN_STREAMS={named}: no *.xl.xz in it")
    return found
