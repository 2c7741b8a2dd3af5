"""How both ends of a ZeroMQ conversation prove that they know the secret, without sending it.

The controller makes a secret for each helper and hands it down through an inherited pipe. The
helper's `hello` carries a nonce and its proof; the controller's `start` carries a proof for the
same nonce. Each includes its sender's name, so neither can be replayed as the other.
"""

from __future__ import annotations

import hmac
from typing import Final

from xen_save_helper.ipc_schema.channel.messages import Sender

SECRET_SIZE: Final = 32
NONCE_SIZE: Final = 32


def proof(secret: bytes, sender: Sender, nonce: bytes) -> bytes:
    """HMAC-SHA256 of the sender's name and the nonce."""
    return hmac.digest(secret, sender.value.encode() + b"\0" + nonce, "sha256")


def is_proof(candidate: bytes, secret: bytes, sender: Sender, nonce: bytes) -> bool:
    """Whether `candidate` is the proof; takes constant time."""
    return hmac.compare_digest(candidate, proof(secret, sender, nonce))
