from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from axion.errors import ModelLoadError
from axion.text.detokenizer import IncrementalDetokenizer
from axion.text.tokenizer import Tokenizer, load_tokenizer

from .conftest import SENTENCES, corpus, plain_ids

TRAINED_ON = [part for text in SENTENCES for part in text.splitlines()] * 4
AS_IT_IS: dict[str, Any] = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
}
# By the models that are made so.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", "vocab_size": 420, **AS_IT_IS},
    "gemma": {
        "model_type": "bpe",
        "vocab_size": 420,
        **AS_IT_IS,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<start_of_turn>", "\n\n", "▁▁▁▁"],
    },
    "yi": {
        "model_type": "bpe",
        "vocab_size": 420,
        **AS_IT_IS,
        "user_defined_symbols": ["<|im_start|>", "<|im_end|>", "again", "<|im"],
    },
    "t5": {"model_type": "unigram", "vocab_size": 200, "bos_id": -1, "pad_id": 0, "eos_id": 1}
    | {"unk_id": 2},
    "unigram": {"model_type": "unigram", "vocab_size": 440, "required_chars": "<>", **AS_IT_IS},
}


def train(**options: Any) -> bytes:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINED_ON),
        model_writer=file,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{"character_coverage": 0.98, **options},
    )
    return file.getvalue()


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    return request.param, train(**KINDS[request.param])


@pytest.fixture(scope="module")
def llama() -> bytes:
    return train(**KINDS["llama"])


def loaded(path: Path, data: bytes, **files: Any) -> Tokenizer:
    (path / "tokenizer.model").write_bytes(data)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(path)


def test_ids_and_texts_are_sentencepieces(trained: tuple[str, bytes], tmp_path: Path) -> None:
    kind, data = trained
    oracle = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = loaded(tmp_path, data)
    assert ours.vocab_size == oracle.vocab_size()
    texts = SENTENCES if kind == "t5" else corpus()
    if kind == "unigram":  # may take either of two ways that are equally good
        texts = [text for text in texts if "aaa" not in text]
    for text in texts:
        ids = plain_ids(ours, text)
        assert ids == oracle.encode(text), text
        if kind != "t5":  # which normalises, and knows no bytes
            assert ours.decode(ids) == text
    assert [ours.id_to_token(id) for id in range(ours.vocab_size)] == [
        oracle.id_to_piece(id) for id in range(ours.vocab_size)
    ]


def test_text_is_streamed(trained: tuple[str, bytes], tmp_path: Path) -> None:
    ours = loaded(tmp_path, trained[1])
    for text in SENTENCES:
        ids = ours.encode(text, add_special_tokens=False)
        detokenizer = IncrementalDetokenizer(ours)
        parts = [detokenizer.push([id]) for id in ids]
        assert "".join(parts) + detokenizer.flush() == ours.decode(ids)


@pytest.mark.parametrize(
    ("config", "around"),
    [
        ({}, ("<s>", None)),
        ({"add_bos_token": False}, (None, None)),
        ({"add_eos_token": True}, ("<s>", "</s>")),
        ({"bos_token": {"content": "</s>"}}, ("</s>", None)),
        ({"bos_token": "<nowhere>"}, (None, None)),
    ],
)
def test_ends_of_a_text_are_as_the_config_says(
    llama: bytes, tmp_path: Path, config: dict[str, Any], around: tuple[str | None, str | None]
) -> None:
    ours = loaded(tmp_path, llama, tokenizer_config=config)
    before, after = ([ours.token_to_id(end)] if end else [] for end in around)
    assert ours.encode("Hello") == [
        *before,
        *ours.encode("Hello", add_special_tokens=False),
        *after,
    ]
    assert ours.special_tokens["eos_token"] == "</s>"


def test_special_tokens_in_a_text_are_found_and_skipped(llama: bytes, tmp_path: Path) -> None:
    ours = loaded(tmp_path, llama)
    ids = ours.encode_chat("<s>Hello</s>")
    assert ids[0] == ours.token_to_id("<s>")
    assert ids[-1] == ours.token_to_id("</s>")
    assert ours.decode(ids) == "Hello"


def test_a_text_begins_anew_behind_a_special_token_unless_legacy_is_false(
    llama: bytes, tmp_path: Path
) -> None:
    def behind_bos(**config: Any) -> list[int]:
        return loaded(tmp_path, llama, tokenizer_config=config).encode_chat("<s>你好")[1:]

    anew = behind_bos()
    assert loaded(tmp_path, llama).id_to_token(anew[0]) == "▁"
    assert behind_bos(legacy=False) == anew[1:]


@pytest.mark.parametrize("older", [True, False])
def test_tokens_that_the_folder_adds_have_their_ids(
    llama: bytes, tmp_path: Path, older: bool
) -> None:
    first = sentencepiece.SentencePieceProcessor(model_proto=llama).vocab_size()
    ids = {"<|im_start|>": first, "<|im_end|>": first + 5}
    files: dict[str, Any] = {"added_tokens": ids, "tokenizer_config": {"eos_token": "<|im_end|>"}}
    if not older:
        decoder = {str(id): {"content": token, "special": True} for token, id in ids.items()}
        files = {"tokenizer_config": {"added_tokens_decoder": decoder}}
    ours = loaded(tmp_path, llama, **files)
    assert {token: ours.token_to_id(token) for token in ids} == ids
    assert ours.token_to_id("<|im_end|>") in ours.special_token_ids
    assert ours.encode_chat("<|im_start|>你<|im_end|>")[:1] == [first]
    assert ours.vocab_size == first + 6


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "text", "not UTF-8"])
def test_a_damaged_model_is_refused_in_one_sentence(
    llama: bytes, tmp_path: Path, damage: str
) -> None:
    assert b"\x04</s>" in llama
    data = {
        "not UTF-8": llama.replace(b"\x04</s>", b"\x04\xff\xff\xff\xff"),
        "cut": llama[: len(llama) // 2 + 1],
        "noise": bytes(range(256)) * 20,
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
    }[damage]
    with pytest.raises(ModelLoadError, match=r"^tokenizer\.model .*damaged") as caught:
        loaded(tmp_path, data)
    assert "\n" not in caught.value.message
    assert str(tmp_path) not in caught.value.message


def _changed(data: bytes, **fields: Any) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(data)
    for name, value in fields.items():
        part, _, field = name.partition("__")
        if part == "piece":
            model.pieces[int(field)].piece = value
        else:
            setattr(getattr(model, f"{part}_spec"), field, value)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trainer__model_type": 3}, "words or characters"),
        ({"trainer__treat_whitespace_as_suffix": True}, "not supported"),
        ({"trainer__unk_id": 10**6}, "unknown"),
        ({"trainer__unk_id": -1}, "unknown"),
        ({"piece__300": "x" * 100_000}, "too long"),
        ({"piece__300": ""}, "none"),
        ({"piece__300": "</s>"}, "twice"),
        ({"normalizer__precompiled_charsmap": b"\xff\xff\xff\x7f"}, "table of characters"),
    ],
)
def test_a_hostile_model_is_refused_in_one_sentence(
    llama: bytes, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelLoadError, match=said):
        loaded(tmp_path, _changed(llama, **fields))


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {"x": {"content": "y"}}},
        {"added_tokens_decoder": {"7": "y"}},
        {"added_tokens_decoder": {str(10**12): {"content": "y"}}},
        {"added_tokens_decoder": ["y"]},
        {"added_tokens_decoder": {"-1": {"content": "y"}}},
    ],
)
def test_added_tokens_of_another_form_are_refused(
    llama: bytes, tmp_path: Path, config: dict[str, Any]
) -> None:
    with pytest.raises(ModelLoadError, match="added tokens"):
        loaded(tmp_path, llama, tokenizer_config=config)
