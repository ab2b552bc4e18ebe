"""No text holds up a server, whatever pattern a model's tokenizer brings."""

from __future__ import annotations

import importlib.resources
import time
from itertools import product
from pathlib import Path

import pytest
from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from axion.errors import InvalidRequestError, ModelLoadError
from axion.text import bounded_tokenizer
from axion.text.bounded_tokenizer import (
    KNOWN_PATTERNS,
    BoundedTokenizer,
    is_known,
    load_bounded_tokenizer,
)
from axion.text.tokenizer import load_tokenizer

from .conftest import byte_level

HOSTILE = r"(a+)+$"
# Nobody's, and harmless.
OWN = r"\w+|\W"


def save(folder: Path, pattern: str) -> Path:
    library = byte_level()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.save(str(folder / "tokenizer.json"))
    return folder


def test_a_pattern_that_runs_away_ends_with_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_tokenizer, "TIMEOUT_S", 0.5)
    tokenizer = load_bounded_tokenizer(save(tmp_path, HOSTILE))
    endless = ("a" * 22 + "!") * 1000
    with pytest.raises(InvalidRequestError, match=r"stopped on this text: it takes longer than"):
        tokenizer.encode(endless)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    tokenizer.close()


def test_a_pattern_that_nobody_knows_gives_the_same_tokens(tmp_path: Path) -> None:
    save(tmp_path, OWN)
    bounded, plain = load_bounded_tokenizer(tmp_path), load_tokenizer(tmp_path)
    assert isinstance(bounded, BoundedTokenizer)
    for text in ("", "Hello, <|im_start|> 你好\n", "x" * 5000):
        assert bounded.encode(text) == plain.encode(text)
        assert bounded.encode_chat(text) == plain.encode_chat(text)
    with pytest.raises(InvalidRequestError, match="surrogate"):
        bounded.encode("\ud800")
    assert bounded.encode_continuation("again") == plain.encode_continuation("again")
    bounded.close()


def test_the_usual_ones_encode_in_the_same_process() -> None:
    demo = Path(str(importlib.resources.files("axion") / "demo" / "model"))
    assert not isinstance(load_bounded_tokenizer(demo), BoundedTokenizer)
    assert is_known(r"a\+b|<x>")
    assert not is_known(HOSTILE)
    assert not is_known(r"\s+$")


def test_a_pattern_in_the_normalizer_counts_too(tmp_path: Path) -> None:
    library = byte_level()
    library.normalizer = normalizers.Sequence([normalizers.Replace(Regex(OWN), "")])
    library.save(str(tmp_path / "tokenizer.json"))
    assert isinstance(load_bounded_tokenizer(tmp_path), BoundedTokenizer)


def test_a_decoder_has_no_pattern(tmp_path: Path) -> None:
    library = byte_level()
    library.decoder = decoders.Sequence([decoders.Replace(Regex(OWN), "")])
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelLoadError, match="decoder"):
        load_bounded_tokenizer(tmp_path)


def test_known_patterns_take_no_longer_than_texts_are_long() -> None:
    """Of a text eight times as long one takes 8 times the time, or 64 where it is the square."""
    units = [" ", "a", "A", "1", "!", "\n", "'", "é", "中", " a", "A\u0301", " \n", "aB'"]
    for pattern in sorted(KNOWN_PATTERNS):
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        for unit, end in product(units, ["x", "!"]):
            short, long = (seconds(cut, (unit * length)[:length] + end) for length in (1000, 8000))
            assert long < 32 * short, (pattern, unit)


def seconds(cut: pre_tokenizers.Split, text: str) -> float:
    """CPU time, the least of a few, since the garbage collector may run in one of them."""
    times = []
    for _ in range(3):
        started = time.thread_time()
        cut.pre_tokenize_str(text)
        times.append(time.thread_time() - started)
    return min(times)
