"""Bandwidth for several migrations at once, shared by weight. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Shares:
    """Shares of `total` bytes a second (0: no limit) for those under way, by weight, which is 1 if
    not given. Together they never have more than `total`, if that is a byte for each.

    A share is fixed when its migration begins, and what one leaves goes to the next that begins; if
    the shares are `adjustable`, all are shared out anew whenever one begins or ends.
    """

    def __init__(
        self, total: int, weights: Mapping[str, float], *, adjustable: bool = False
    ) -> None:
        """Raises ValueError for a weight that is not above 0."""
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"weight of {name!r}: want a number above 0, not {weight:g}")
        self._total = total
        self._weights = weights
        self._adjustable = adjustable
        self._held: dict[str, int] = {}

    @property
    def held(self) -> dict[str, int]:
        """The shares of those under way, in bytes a second."""
        return dict(self._held)

    def begin(self, name: str, soon: Iterable[str] = ()) -> int:
        """Give `name` its share, beside those that will begin `soon`. Returns it: bytes a second,
        at least 1, 0 for no limit."""
        if not self._total:
            return 0
        if self._adjustable:
            self._held[name] = 0
            self._share_anew()
        else:
            free = self._total - sum(self._held.values())
            weight = self._weight(name)
            part = weight / (weight + sum(map(self._weight, soon)))
            self._held[name] = max(1, int(free * part))
        return self._held[name]

    def end(self, name: str) -> None:
        """Take a share back."""
        self._held.pop(name, None)
        if self._adjustable:
            self._share_anew()

    def _share_anew(self) -> None:
        whole = sum(map(self._weight, self._held))
        for name in self._held:
            self._held[name] = max(1, int(self._total * self._weight(name) / whole))

    def _weight(self, name: str) -> float:
        return self._weights.get(name, 1.0)
