"""The index finds what a search of the whole sequence does."""

from __future__ import annotations

import random

from axion.engine.ngram_index import NgramIndex


def brute_force(token_ids: list[int], limit: int) -> list[int]:
    last = len(token_ids) - 1
    best, longest = -1, 1
    for position in reversed(range(1, last)):
        length = 0
        while (
            length < min(16, position + 1)
            and token_ids[position - length] == token_ids[last - length]
        ):
            length += 1
        if length > longest:
            best, longest = position, length
    if best < 0:
        return []
    period = last - best
    return [token_ids[best + 1 + i % period] for i in range(limit)]


def test_ngrams_find_the_longest_match_while_the_sequence_grows():
    rng = random.Random(3)
    for _ in range(100):
        index, token_ids = NgramIndex(), [rng.randrange(4)]
        for _ in range(12):
            if rng.random() < 0.3:
                index.extend(token_ids, len(token_ids) - 1)
            assert index.find(token_ids, 5) == brute_force(token_ids, 5)
            token_ids.append(rng.randrange(4))
