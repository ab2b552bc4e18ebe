from __future__ import annotations

import pytest

from axion.errors import ModelLoadError
from axion.text.tokenizer_formats import common
from axion.text.tokenizer_formats.common import merges_of


def test_a_token_merges_from_all_pairs_that_make_it():
    assert merges_of({"a": 0, "b": 1, "ab": 2, "aba": 3, "ba": 4}) == [
        ("a", "b"),
        ("ab", "a"),
        ("a", "ba"),
        ("b", "a"),
    ]


def test_tokens_that_merge_in_too_many_ways_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common, "_MAX_MERGES", 1000)
    with pytest.raises(ModelLoadError, match="in too many ways"):
        merges_of({"a" * length: length for length in range(1, 100)})


def test_tokens_that_are_too_long_together_are_refused():
    with pytest.raises(ModelLoadError, match="too long together"):
        merges_of({f"{number:01024}": number for number in range(2**14 + 1)})
