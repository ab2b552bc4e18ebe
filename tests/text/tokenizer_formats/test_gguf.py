"""Tokenizers in GGUF files, against those that they were converted from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Regex

from axion.demo import MODEL_DIR
from axion.errors import ModelLoadError
from axion.text.tokenizer import Tokenizer, load_tokenizer
from axion.text.tokenizer_formats import gguf
from axion.text.tokenizer_formats.common import merges_of
from tests.gguf_files import tokenizer_metadata

from .conftest import SENTENCES, corpus, plain_ids
from .test_sentencepiece import KINDS, train

SPECIAL = ["<|im_start|>user\nHi!<|im_end|>", "a<|im_end|>b", " x <|im_end|>  y"]


def converted(metadata: dict[str, Any], **changes: Any) -> Tokenizer:
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return Tokenizer(*gguf.convert(metadata | changes))


def sentencepiece_metadata(
    kind: str,
) -> tuple[sentencepiece.SentencePieceProcessor, dict[str, Any]]:
    oracle = sentencepiece.SentencePieceProcessor(model_proto=train(**KINDS[kind]))
    ids = range(oracle.vocab_size())
    types = [
        2 if oracle.IsUnknown(id) else 3 if oracle.IsControl(id) else 6 if oracle.IsByte(id) else 1
        for id in ids
    ]
    symbols = KINDS[kind].get("user_defined_symbols", ())
    return oracle, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [oracle.IdToPiece(id) for id in ids],
        "tokenizer.ggml.scores": [oracle.GetScore(id) for id in ids],
        "tokenizer.ggml.token_type": [
            4 if oracle.IdToPiece(id) in symbols else type
            for id, type in zip(ids, types, strict=True)
        ],
        "tokenizer.ggml.bos_token_id": oracle.bos_id(),
        "tokenizer.ggml.eos_token_id": oracle.eos_id(),
        "tokenizer.ggml.add_space_prefix": kind != "gemma",
    }


@pytest.mark.parametrize("pre", ["gpt-2", "default"])
def test_byte_pairs_are_those_of_tokenizer_json(tiny_model: Path, pre: str):
    ours, theirs = converted(tokenizer_metadata(tiny_model, pre)), load_tokenizer(tiny_model)
    for text in [*SENTENCES, "<|user|>Hi<|end|>"]:
        if pre == "gpt-2":
            assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == text
    assert ours.special_token_ids == theirs.special_token_ids


def test_a_vocabulary_without_merges_is_of_whole_words():
    ours, theirs = converted(tokenizer_metadata(MODEL_DIR, "smollm")), load_tokenizer(MODEL_DIR)
    for text in [*SENTENCES, *SPECIAL, "<tool_call>{}</tool_call> 12 apples, isn't it?"]:
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_sentencepieces_are_sentencepieces(kind: str):
    oracle, metadata = sentencepiece_metadata(kind)
    tokenizer = converted(metadata, add_bos_token=False)
    for text in corpus():
        ids = plain_ids(tokenizer, text)
        assert ids == oracle.encode(text), text
        assert tokenizer.decode(ids) == text
    with_bos = converted(metadata)
    assert with_bos.encode("a") == [oracle.bos_id(), *oracle.encode("a")]
    assert with_bos.special_tokens["eos_token"] == "</s>"
    both = converted(metadata, add_eos_token=True)
    assert both.encode("a") == [oracle.bos_id(), *oracle.encode("a"), oracle.eos_id()]


def test_pairs_of_characters_are_merged_as_the_file_says():
    oracle, metadata = sentencepiece_metadata("gemma")
    ranks = {
        token: -score
        for token, score, kind in zip(
            metadata["tokenizer.ggml.tokens"],
            metadata["tokenizer.ggml.scores"],
            metadata["tokenizer.ggml.token_type"],
            strict=True,
        )
        if kind == 1
    }
    merges = [" ".join(merge) for merge in merges_of(ranks)]
    pairs = converted(metadata, model="gemma4", merges=merges, scores=[], add_bos_token=False)
    for text in corpus():
        assert plain_ids(pairs, text) == oracle.encode(text), text
        assert pairs.decode(oracle.encode(text)) == text
    assert pairs.encode("a") == [oracle.bos_id(), *oracle.encode("a")]
    with pytest.raises(ModelLoadError, match="tokenizer is damaged"):
        converted(metadata, model="gemma4", merges=["qqq zzz"])


@pytest.mark.parametrize("name", gguf._CUTS)
def test_every_rule_of_cutting_keeps_the_text(name: str, tiny_model: Path):
    for pattern in gguf._CUTS[name].patterns:
        Regex(pattern)
    tokenizer = converted(tokenizer_metadata(tiny_model, name))
    for text in SENTENCES:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_cut_as_the_family_does(tiny_model: Path):
    def words(pre: str, text: str) -> list[str]:
        library = gguf.convert(tokenizer_metadata(tiny_model, pre)).tokenizer
        return [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)]

    assert words("llama-bpe", "12345 It's") == ["123", "45", "ĠIt", "'s"]
    assert words("qwen2", "123 IT'S") == ["1", "2", "3", "ĠIT", "'S"]
    assert words("gpt-2", "123 IT'S") == ["123", "ĠIT", "'", "S"]
    assert words("smollm", " 12 a") == ["Ġ", "1", "2", "Ġa"]
    assert words("tekken", "camelCase 12") == ["camel", "Case", "Ġ", "1", "2"]
    assert words("kimi-k2", "Hi你好1234") == ["Hi", "ä½łå¥½", "123", "4"]
    assert words("deepseek-llm", "Ab12! 你好") == ["Ab", "12", "!", "Ġ", "ä½łå¥½"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "bert"}, "of the kind 'bert', which is not supported"),
        ({"pre": "new-rule"}, "by the rule 'new-rule'"),
        ({"pre": ["new-rule"]}, "by the rule .*new-rule"),
        ({"tokens": []}, "its lists differ in length"),
        ({"tokens": [1, 2]}, "tokens is not a list of its kind"),
        ({"token_type": [1]}, "its lists differ in length"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "a token twice"),
        ({"tokens": ["a", "b" * 2000], "token_type": [1, 1]}, "a token is too long"),
        ({"merges": ["ab"]}, "a merge is not of two"),
        ({"merges": ["no such"]}, "is damaged"),
        ({"merges": "a b"}, "merges is not a list"),
        ({"model": "llama"}, "has no scores"),
    ],
    ids=str,
)
def test_a_damaged_tokenizer_is_refused(changes: dict[str, Any], said: str, tiny_model: Path):
    with pytest.raises(ModelLoadError, match=said):
        converted(tokenizer_metadata(tiny_model, "gpt-2"), **changes)


def test_a_special_token_that_is_no_id_is_none(tiny_model: Path):
    metadata = tokenizer_metadata(tiny_model, "gpt-2")
    tokenizer = converted(metadata, bos_token_id="x", eos_token_id=[0])
    assert (tokenizer.bos_token, tokenizer.eos_token) == (None, None)
