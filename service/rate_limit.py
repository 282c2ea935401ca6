"""Rate limits: a token bucket, and the text `100/minute`.

Guarantees: a bucket allows `limit` requests at once, and on average `limit` per period. A refused request is not
counted.
Out of scope: limits that several processes share, and use from several threads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

RATE_EXPECTED: Final = "a number of requests per second, minute, hour or day, such as 100/minute"
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE: Final = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rate:
    """How many requests are allowed per period."""

    limit: int
    period: str

    def __str__(self) -> str:
        return f"{self.limit}/{self.period}"

    @property
    def seconds(self) -> int:
        """Length of the period."""
        return _SECONDS[self.period]


def parse_rate(text: str) -> Rate:
    """Return the rate that `100/minute` means. Raises ValueError."""
    found = _RATE.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is not a rate: expected {RATE_EXPECTED}")
    return Rate(int(found[1]), found[2])


class TokenBucket:
    """Counts the requests of one key."""

    def __init__(self, rate: Rate, now: float) -> None:
        """now: the time (s) of a clock that only goes forward."""
        self.rate = rate
        self._tokens = float(rate.limit)
        self._updated = now

    def take(self, now: float) -> float:
        """Allow a request and return 0, or return for how many seconds no request is allowed."""
        per_second = self.rate.limit / self.rate.seconds
        self._tokens = min(self.rate.limit, self._tokens + (now - self._updated) * per_second)
        self._updated = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / per_second
