from __future__ import annotations

import base64
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from tokenizers import Regex, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from axion.errors import ModelLoadError
from axion.text.byte_alphabet import from_alphabet
from axion.text.tokenizer import Tokenizer, load_tokenizer
from axion.text.tokenizer_formats import tiktoken as format
from axion.text.tokenizer_formats.common import CL100K

from .conftest import SENTENCES, corpus, plain_ids


def train(pattern: str) -> dict[bytes, int]:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=700, show_progress=False, initial_alphabet=alphabet)
    library.train_from_iterator(SENTENCES, trainer)
    return {from_alphabet(token): id for token, id in library.get_vocab().items()}


RANKS = train(CL100K)


def written(ranks: dict[bytes, int]) -> str:
    ordered = sorted(ranks.items(), key=lambda entry: entry[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ordered)


def loaded(path: Path, name: str, text: str, config: dict[str, Any] | None = None) -> Tokenizer:
    (path / name).write_text(text)
    (path / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("qwen.tiktoken", format._QWEN),
        ("tiktoken.model", format._BY_FILE["tiktoken.model"]),
        ("tokenizer.model", format._OTHERS),
    ],
)
def test_ids_and_texts_are_tiktokens(tmp_path: Path, name: str, family: format._Family) -> None:
    oracle = tiktoken.Encoding(
        name, pat_str=family.pattern, mergeable_ranks=RANKS, special_tokens={}
    )
    ours = loaded(tmp_path, name, written(RANKS))
    for text in corpus():
        ids = plain_ids(ours, text)
        normal = unicodedata.normalize("NFC", text) if family.composed else text
        assert ids == oracle.encode_ordinary(normal), text
        assert ours.decode(ids) == normal


def test_special_tokens_of_qwen_follow_the_ranks(tmp_path: Path) -> None:
    ours = loaded(tmp_path, "qwen.tiktoken", written(RANKS))
    first = len(RANKS)
    assert ours.encode("<|im_start|>a<|im_end|>") == [first + 1, *ours.encode("a"), first + 2]
    assert ours.token_to_id("<|extra_204|>") == ours.vocab_size - 1 == first + 207
    assert ours.eos_token == "<|endoftext|>"
    assert ours.decode([first, first + 1]) == ""


def test_special_tokens_of_llama_3_follow_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(format._BY_NUM_RANKS, len(RANKS), format._LLAMA3)
    assert format._BY_NUM_RANKS[128_000] is format._LLAMA3
    ours = loaded(tmp_path, "tokenizer.model", written(RANKS))
    offsets = {
        "<|begin_of_text|>": 0,
        "<|end_of_text|>": 1,
        "<|reserved_special_token_0|>": 2,
        "<|reserved_special_token_1|>": 3,
        "<|finetune_right_pad_id|>": 4,
        "<|reserved_special_token_2|>": 5,
        "<|start_header_id|>": 6,
        "<|end_header_id|>": 7,
        "<|eom_id|>": 8,
        "<|eot_id|>": 9,
        "<|python_tag|>": 10,
        "<|reserved_special_token_3|>": 11,
        "<|reserved_special_token_247|>": 255,
    }
    assert {token: ours.token_to_id(token) for token in offsets} == {
        token: len(RANKS) + offset for token, offset in offsets.items()
    }
    assert ours.encode("a")[0] == len(RANKS)
    assert ours.encode_chat("<|begin_of_text|>a").count(len(RANKS)) == 1


def test_the_config_says_which_tokens_are_added_and_where(tmp_path: Path) -> None:
    config = {
        "added_tokens_decoder": {
            "720": {"content": "[gMASK]", "special": True},
            "725": {"content": "<|observation|>", "special": False},
        },
        "bos_token": "[gMASK]",
        "eos_token": "<|observation|>",
        "add_bos_token": True,
    }
    ours = loaded(tmp_path, "tokenizer.model", written(RANKS), config)
    assert ours.encode("a<|observation|>") == [720, *RANKS_OF_A, 725]
    assert ours.special_token_ids == {720, 725}  # a named one is special too


RANKS_OF_A = [RANKS[b"a"]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (written(RANKS)[:-5], f"line {len(RANKS)}:"),
        (written(RANKS) + "!!!! 700\n", f"line {len(RANKS) + 1}:"),
        (written(RANKS) + "AAAA x\n", f"line {len(RANKS) + 1}:"),
        (written({b"a": 0, b"b": 1}), "lacks bytes"),
        (written(RANKS | {b"zzzz": 5}), "are one"),
        (written(RANKS | {b"zzzz": 2**40}), "impossible"),
        (written(RANKS | {b"z" * 5000: 700}), "impossible"),
        (written(RANKS | {b"<|im_end|>": 700}), "are one"),
    ],
)
def test_damaged_ranks_are_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"^qwen\.tiktoken is damaged.*{said}") as caught:
        loaded(tmp_path, "qwen.tiktoken", text)
    assert "\n" not in caught.value.message
