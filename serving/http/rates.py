"""How often somebody may come: token buckets in bounded memory. Who that is, is for the caller to say."""

from __future__ import annotations

from collections import OrderedDict

MOST_BUCKETS = 10_000


class Buckets:
    """One bucket a name: it holds `burst` tokens at most and gets `per_second` back.

    The names that came last are remembered, `most` of them. A forgotten name starts with a full bucket.
    """

    def __init__(self, per_second: float, burst: float, most: int = MOST_BUCKETS) -> None:
        """Take tokens a second, tokens at most and names at most, all above 0."""
        self.per_second = per_second
        self.burst = burst
        self._most = most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, now: float) -> float:
        """Take one token: 0.0 where there was one, else the seconds until there will be.

        Args:
            name: whose bucket.
            now: seconds of a clock that never goes back.
        """
        left = self.left(name, now)
        taken = left >= 1.0
        self._buckets[name] = (left - taken, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1.0 - left) / self.per_second

    def left(self, name: str, now: float) -> float:
        """Tokens in a bucket."""
        tokens, since = self._buckets.get(name, (self.burst, now))
        return min(self.burst, tokens + (now - since) * self.per_second)
