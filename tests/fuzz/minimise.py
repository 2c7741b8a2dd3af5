"""Make an input that fails smaller, as long as it fails in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LIMIT: Final = 10.0
"""Seconds for one input."""


def minimise(data: bytes, fails: Callable[[bytes], bool], limit: float = LIMIT) -> bytes:
    """`data` without the pieces that `fails` does not need, and with zeros where any octet does;
    `data` itself where `fails` is not true of it a second time."""
    deadline = time.monotonic() + limit
    if not fails(data):
        return data
    size = len(data) // 2
    while size and time.monotonic() < deadline:
        at = 0
        while at < len(data) and time.monotonic() < deadline:
            shorter = data[:at] + data[at + size :]
            if fails(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    for at, octet in enumerate(data):
        if time.monotonic() > deadline:
            break
        plainer = data[:at] + b"\0" + data[at + 1 :]
        if octet and fails(plainer):
            data = plainer
    return data
