"""Rate limits: token buckets whose memory does not grow with the number of clients."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """For every key: `burst` requests at once, then `per_s` requests per second."""

    def __init__(
        self,
        burst: int,
        per_s: float,
        kept: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        burst: number of requests that a rested key may send at once.
        per_s: number of requests that a key regains per second.
        kept: number of remembered keys; the key with the oldest request is forgotten first.
        """
        self._burst, self._per_s, self._kept, self._clock = burst, per_s, kept, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> int:
        """Count a request: 0 if it may pass, else the seconds until the next one may."""
        with self._lock:
            now = self._clock()
            left, then = self._buckets.pop(key, (float(self._burst), now))
            left = min(self._burst, left + (now - then) * self._per_s)
            wait = 0 if left >= 1 else math.ceil((1 - left) / self._per_s)
            self._buckets[key] = (left if wait else left - 1, now)
            while len(self._buckets) > self._kept:
                self._buckets.popitem(last=False)
        return wait
