"""How many requests one sender may send: a token bucket for each, in this process."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

MOST_SENDERS = 10_000


class Rates:
    """`per_s` on the whole, `burst` at once."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, sender: str) -> float:
        """0 where one more request may be answered, which then counts; else in how many seconds."""
        moment = time.monotonic()
        with self._lock:
            tokens, since = self._buckets.pop(sender, (self._burst, moment))
            tokens = min(self._burst, tokens + (moment - since) * self._per_s)
            wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_s
            self._buckets[sender] = (tokens if wait else tokens - 1, moment)
            while len(self._buckets) > MOST_SENDERS:
                self._buckets.popitem(last=False)
        return wait
