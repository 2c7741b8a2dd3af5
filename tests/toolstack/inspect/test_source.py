"""The bytes of an inspected stream, from a file and from a pipe."""

from __future__ import annotations

import io

import pytest

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.toolstack.inspect.source import CHUNK, Source


class Pipe(io.BytesIO):
    """Bytes in which one cannot seek."""

    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
@pytest.mark.parametrize("there", [0, 1, 100, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("more", [1, CHUNK - 1, CHUNK, 3 * CHUNK])
def test_a_skip_past_the_end_says_where_and_how_much_is_missing(
    kind: type[io.BytesIO], there: int, more: int
) -> None:
    source = Source(kind(b"head" + bytes(there)))
    assert source.read(4, "head") == b"head"
    with pytest.raises(DecodeError, match=f"want at least {more} bytes more") as refused:
        source.skip(there + more, "body")
    assert (refused.value.what, refused.value.offset) == ("body", 4 + there)


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK + 1])
def test_what_follows_a_skip_is_read(kind: type[io.BytesIO], size: int) -> None:
    source = Source(kind(bytes(size) + b"next"))
    source.skip(size, "body")
    assert source.offset == size
    assert source.read(4, "next") == b"next"
