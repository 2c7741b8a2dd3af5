"""POSTCOPY_OFFER: where the sender's page server listens, and the keys for it.

The stream's own link is encrypted by who made it (ssh): what is in it is known to both ends alone.
The server takes nobody but the holder of the client's secret key, and the client trusts nobody but
the holder of the server's.

msgpack is imported here when it is wanted: few streams have an offer.
"""

from __future__ import annotations

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

_KEY: Final = 40
"""Characters of a key of CURVE, in Z85."""
MOST: Final = 4096
"""The most bytes of a body."""


class PostcopyOffer(NamedTuple):
    """Keys are CURVE's, in Z85."""

    address: str
    port: int
    server_key: str
    client_key: str
    client_secret: str


def encode(offer: PostcopyOffer) -> bytes:
    import msgpack

    body: bytes = msgpack.packb(offer._asdict())
    return body


def decode(body: bytes, offset: int) -> PostcopyOffer:
    """Raises DecodeError."""
    import msgpack

    what = "POSTCOPY_OFFER"
    if len(body) > MOST:
        raise DecodeError(what, offset, f"{len(body)} bytes, want at most {MOST}")
    try:
        offer = PostcopyOffer(**msgpack.unpackb(body))
    except (ValueError, TypeError) as error:
        raise DecodeError(what, offset, f"is not an offer: {error}") from error
    if not isinstance(offer.address, str) or not offer.address or "\0" in offer.address:
        raise DecodeError(what, offset, f"the address {offer.address!r}")
    if not isinstance(offer.port, int) or not 0 < offer.port < 1 << 16:
        raise DecodeError(what, offset, f"the port {offer.port!r}")
    for key in offer[2:]:
        if not isinstance(key, str) or len(key) != _KEY or not key.isascii():
            raise DecodeError(what, offset, "a key that is none")
    return offer
