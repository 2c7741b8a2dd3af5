"""How long a wait can be set to last, on either side of the split."""

from __future__ import annotations

from typing import Final

LONGEST_WAIT: Final = 2_000_000.0
"""Seconds: 23 days. `poll` counts milliseconds in an int, and a longer wait would overflow it."""

LONGEST_LIMIT: Final = LONGEST_WAIT / 2
"""Seconds: of a controller's limit. A helper is told sums of two."""

LONGEST_TTL: Final = 6_553_500
"""Milliseconds: what a ZeroMQ heartbeat can say of how long the other end shall wait for the next.
"""
