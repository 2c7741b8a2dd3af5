"""A host's record of the guests that evacuations have moved: the same command goes on after an
interruption, although guests that it names are no longer here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

FILE: Final = "evacuated.jsonl"


def add(state_dir: Path, name: str, destination: str) -> None:
    """Note that a guest was moved. Raises OSError."""
    state_dir.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"name": name, "destination": destination}).encode() + b"\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with open(os.open(state_dir / FILE, flags, 0o600), "wb", buffering=0) as file:
        file.write(line)


def moved(state_dir: Path) -> dict[str, str]:
    """The destinations of the guests that were moved, by name; the last one of each. Lines that are
    not ours are passed over. Raises OSError."""
    try:
        text = (state_dir / FILE).read_text(errors="replace")
    except FileNotFoundError:
        return {}
    found = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            found[str(entry["name"])] = str(entry["destination"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
