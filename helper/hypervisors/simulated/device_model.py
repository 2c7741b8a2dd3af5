"""The emulated device model of an HVM guest: its xenstore entries and its saved state.

It is a file in the domain's directory. The saved state has a token and the guest's step count,
which the guest compares with its registers when it starts from them: the state of another guest, or
of another moment, crashes it. A state that is not a simulated device model's (but a real QEMU's) is
kept and returned unchanged.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_FILE: Final = "device-model.json"
_MAGIC: Final = b"XSH-DEVICE-MODEL"
_FORMAT: Final = struct.Struct("<16s16sQ")

DEFAULT_XENSTORE: Final = (
    (b"physmap/f0000000/start_addr", b"f0000000"),
    (b"physmap/f0000000/size", b"800000"),
    (b"physmap/f0000000/name", b"vga.vram"),
)
"""What a QEMU with a VGA card leaves in xenstore for libxl to save."""


@dataclass(frozen=True)
class DeviceModel:
    """`context` is what it was restored from, None if it started with its guest."""

    token: bytes
    xenstore: tuple[tuple[bytes, bytes], ...] = DEFAULT_XENSTORE
    context: bytes | None = None

    def save(self, steps: int) -> bytes:
        """Its state after the guest's `steps` steps."""
        if self.context is not None and not self.context.startswith(_MAGIC):
            return self.context
        return _FORMAT.pack(_MAGIC, self.token, steps)

    @classmethod
    def restored(
        cls, xenstore: Sequence[tuple[bytes, bytes]], context: bytes | None
    ) -> DeviceModel:
        token = b""
        if context is not None and context.startswith(_MAGIC) and len(context) == _FORMAT.size:
            token = _FORMAT.unpack(context)[1]
        return cls(token, tuple(xenstore), context)

    def mismatch(self, token: bytes, steps: int) -> str | None:
        """Why a guest whose registers have `token` and `steps` cannot start with it; None if it
        can."""
        if self.context is None:
            return "the device model was not restored"
        if len(self.context) != _FORMAT.size or not self.context.startswith(_MAGIC):
            return f"the device model's state ({len(self.context)} bytes) is not a simulated one"
        _, own_token, own_steps = _FORMAT.unpack(self.context)
        if own_token != token:
            return "the device model's state is that of another guest"
        if own_steps != steps:
            return f"the device model was saved at step {own_steps}, the guest at step {steps}"
        return None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def store(directory: int, model: DeviceModel) -> None:
    """Write the device model into the domain's directory, a descriptor."""
    record = {
        "token": _text(model.token),
        "xenstore": [[_text(path), _text(value)] for path, value in model.xenstore],
        "context": None if model.context is None else _text(model.context),
    }
    temporary = _FILE + ".new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o600, dir_fd=directory), "w") as file:
        json.dump(record, file)
    os.rename(temporary, _FILE, src_dir_fd=directory, dst_dir_fd=directory)


def load(directory: int) -> DeviceModel | None:
    """The domain's device model, None if it has none."""
    try:
        fd = os.open(_FILE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with open(fd) as file:
        record = json.load(file)
    context = record["context"]
    return DeviceModel(
        base64.b64decode(record["token"]),
        tuple((base64.b64decode(p), base64.b64decode(v)) for p, v in record["xenstore"]),
        None if context is None else base64.b64decode(context),
    )
