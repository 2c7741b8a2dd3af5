from __future__ import annotations

from tests.toolstack.conftest import runtime_directory

__all__ = ["runtime_directory"]
