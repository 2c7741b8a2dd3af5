"""The state of running operations as metrics (OpenMetrics), by prometheus_client.

All are gauges, whose text is the same in Prometheus's older format: node_exporter's textfile
collector reads both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from xen_save_helper.toolstack.commands.common import CommandError

try:
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.openmetrics.exposition import generate_latest
except ImportError:
    raise CommandError(
        "--openmetrics needs prometheus_client: install xen-save-helper[metrics], or Debian's "
        "python3-prometheus-client"
    ) from None

_FORMAT: Final[Any] = generate_latest
"""It has no types."""
_LABELS: Final = ("domain", "domid", "role")
_MS: Final = 1e-3

_METRICS: Final[Mapping[str, tuple[str, float, str]]] = {
    "total_time": ("elapsed_seconds", _MS, "Time since it began"),
    "transferred": ("transferred_bytes", 1, "Bytes of the stream that were sent or received"),
    "remaining": ("remaining_bytes", 1, "Memory that is still to come, as far as is known"),
    "total": ("memory_bytes", 1, "Memory of the domain"),
    "normal": ("normal_pages", 1, "Pages with contents that were sent or received"),
    "dirty_sync_count": ("round", 1, "The round of precopy"),
    "dirty_pages_rate": ("dirty_pages_per_second", 1, "Pages a second that the guest makes dirty"),
    "memory_bps": ("bytes_per_second", 1, "Throughput"),
    "time_remaining": ("remaining_seconds", _MS, "Time until what remains is sent"),
    "expected_downtime": ("expected_downtime_seconds", _MS, "Downtime if precopy ended now"),
    "downtime": ("downtime_seconds", _MS, "Time since the guest was suspended"),
    "postcopy_remaining": ("postcopy_remaining_pages", 1, "Pages that postcopy has still to move"),
    "postcopy_requests": ("postcopy_requests", 1, "Pages that a vCPU had to wait for"),
    "postcopy_blocktime": ("postcopy_blocktime_seconds", _MS, "Time in which a vCPU waited"),
    "longest_wait": ("longest_wait_seconds", _MS, "How long a vCPU has been waiting now"),
    "paused": ("paused", 1, "1 while sending is paused"),
}
"""By the field of an `OperationStatus`: the name after `xen_migration_`, what the field is
multiplied by, and what it is."""

_OF_POSTCOPY: Final[Mapping[str, tuple[str, float, str]]] = {
    "pages_left": _METRICS["postcopy_remaining"],
    "faults": _METRICS["postcopy_requests"],
    "longest_wait": ("longest_wait_seconds", 1, "How long a vCPU has been waiting now"),
}
"""Likewise, of a `PostcopyStatus`."""


def exposition(rows: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of these rows of `status`; figures that are not known are left out."""
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for row in rows:
        fields = _OF_POSTCOPY if "pages_left" in row else _METRICS
        labels = [str(row[name]) for name in _LABELS]
        for field, (name, factor, text) in fields.items():
            if row[field] is None:
                continue
            if name not in gauges:
                gauges[name] = Gauge(f"xen_migration_{name}", text, _LABELS, registry=registry)
            gauges[name].labels(*labels).set(row[field] * factor)
    return str(_FORMAT(registry).decode())
