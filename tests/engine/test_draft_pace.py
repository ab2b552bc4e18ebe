"""More is guessed while it comes true, and less where it does not pay."""

from __future__ import annotations

from axion.engine.draft_pace import MAX_DRAFT_TOKENS, Pace


def test_the_pace_follows_what_comes_true():
    pace = Pace()
    first = pace.limit()
    for _ in range(8):
        limit = pace.limit()
        pace.book(limit, limit, 0.5)
    assert first < pace.limit() == MAX_DRAFT_TOKENS
    pace.book(MAX_DRAFT_TOKENS, 3, 0.5)
    assert pace.limit() == 4
    limits = []
    for _ in range(1000):
        limits.append(limit := pace.limit())
        if limit:
            pace.book(limit, 0, 0.5)
    assert sum(limit > 0 for limit in limits) < 40, "wrong drafts become rare"
    while not (limit := pace.limit()):
        pass
    pace.book(limit, limit, 0.5)
    assert pace.limit() > limit


def test_a_pace_that_brings_in_less_than_its_price_slows_down():
    def num_drafting(price: float) -> int:
        pace, count = Pace(), 0
        for step in range(1000):
            if limit := pace.limit():
                pace.book(limit, step % 2, price)
                count += 1
        return count

    assert num_drafting(0.3) == 1000
    assert num_drafting(2.0) < 30
