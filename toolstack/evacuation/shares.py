"""Bandwidth for several migrations at once, shared by weight. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Shares:
    """Shares of `total` bytes a second (0: no limit) for those under way, by weight, which is 1 if
    not given. Together they never have more than `total`, if that is a byte for each.

    A share is fixed when its migration begins. A migration whose bandwidth can be changed while it
    runs takes its part of `fair` instead, each time that one begins or ends.
    """

    def __init__(self, total: int, weights: Mapping[str, float]) -> None:
        """Raises ValueError for a weight that is not above 0."""
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"weight of {name!r}: want a number above 0, not {weight:g}")
        self._total = total
        self._weights = weights
        self._held: dict[str, int] = {}

    @property
    def held(self) -> dict[str, int]:
        """The shares of those under way."""
        return dict(self._held)

    def begin(self, name: str, soon: Iterable[str] = ()) -> int:
        """Give `name` its share of what is free, beside those that will begin `soon`. Returns it:
        bytes a second, at least 1, 0 for no limit."""
        if not self._total:
            return 0
        free = self._total - sum(self._held.values())
        weight = self._weight(name)
        share = int(free * weight / (weight + sum(map(self._weight, soon))))
        self._held[name] = max(1, share)
        return self._held[name]

    def end(self, name: str) -> None:
        """Take a share back."""
        self._held.pop(name, None)

    def fair(self, soon: Iterable[str] = ()) -> dict[str, int]:
        """The shares that those under way would have if all began now, beside those that will begin
        `soon`; empty without a limit. Holds them from here on."""
        if not self._total:
            return {}
        weights = {name: self._weight(name) for name in self._held}
        whole = sum(weights.values()) + sum(map(self._weight, soon))
        self._held = {
            name: max(1, int(self._total * weight / whole)) for name, weight in weights.items()
        }
        return self.held

    def _weight(self, name: str) -> float:
        return self._weights.get(name, 1.0)
