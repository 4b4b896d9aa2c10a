"""How often one may ask: token buckets, in memory that does not grow with those who ask."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """So many requests at once, and so many per second from then on, for every key."""

    def __init__(
        self,
        burst: int,
        per_s: float,
        kept: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        burst: requests of a key that has rested.
        per_s: what comes back per second.
        kept: keys remembered; the one that asked longest ago is forgotten first.
        """
        self._burst, self._per_s, self._kept, self._clock = burst, per_s, kept, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> int:
        """Count a request: 0 if it may pass, else the seconds after which the next one may."""
        with self._lock:
            now = self._clock()
            left, then = self._buckets.pop(key, (float(self._burst), now))
            left = min(self._burst, left + (now - then) * self._per_s)
            wait = 0 if left >= 1 else math.ceil((1 - left) / self._per_s)
            self._buckets[key] = (left if wait else left - 1, now)
            while len(self._buckets) > self._kept:
                self._buckets.popitem(last=False)
        return wait
