"""Rates and token buckets."""

from __future__ import annotations

import pytest

from service.rate_limit import Rate, TokenBucket, parse_rate


@pytest.mark.parametrize(
    ("text", "seconds"), [("1/second", 1), ("100/minute", 60), (" 5/Hour ", 3600), ("999999999/day", 86400)]
)
def test_rates_are_parsed(text: str, seconds: int) -> None:
    rate = parse_rate(text)
    assert rate.seconds == seconds
    assert parse_rate(str(rate)) == rate


@pytest.mark.parametrize("text", ["", "0/minute", "-1/minute", "1.5/minute", "1/year", "1", "1 / minute", "٣/minute"])
def test_other_texts_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="such as 100/minute"):
        parse_rate(text)


def test_a_bucket_allows_a_burst_and_then_the_rate() -> None:
    bucket = TokenBucket(Rate(3, "minute"), now=0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(0.0) == pytest.approx(20.0)
    assert bucket.take(15.0) == pytest.approx(5.0), "a refused request is not counted"
    assert bucket.take(20.0) == 0
    assert bucket.take(20.0) == pytest.approx(20.0)


def test_an_idle_bucket_does_not_save_more_than_a_burst() -> None:
    bucket = TokenBucket(Rate(2, "second"), now=0.0)
    assert [bucket.take(1000.0) == 0 for _ in range(3)] == [True, True, False]
