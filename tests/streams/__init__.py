"""Cuts of real streams (`tests.streams.cut`), and where the whole ones are."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest

from tests.unavailable import unavailable

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


def parameters(prefix: str = "") -> list[object]:
    """The whole streams whose names begin with `prefix`, for `parametrize`; where there are none,
    one that `whole` skips, or fails in CI: tests are not lost in silence."""
    found = [path for path in whole_streams() if path.name.startswith(prefix)]
    return [pytest.param(path, id=path.name) for path in found] or [pytest.param(None, id="none")]


def whole(packed: Path | None) -> Path:
    """One of `parameters`, where it is there."""
    if packed is None:
        unavailable(
            "the whole streams are not here: XEN_STREAMS names a directory with "
            "`pvh-save-xen-4.17.xl.xz` and those beside it in tests/streams, uncut: what `xl save` "
            "and `xl migrate` of Xen 4.17 wrote, packed with xz"
        )
    return packed
