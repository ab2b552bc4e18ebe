from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import GPT2Tokenizer

from axion.errors import ModelLoadError
from axion.text.tokenizer import Tokenizer, load_tokenizer

from .conftest import SENTENCES, corpus, plain_ids

# As facebook/opt has it.
OPT = {
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": {"content": "</s>"},
    "eos_token": {"content": "</s>"},
    "unk_token": {"content": "</s>"},
    "add_bos_token": True,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=alphabet,
        special_tokens=["<|endoftext|>", "</s>"],
    )
    library.train_from_iterator(SENTENCES, trainer)
    folder = tmp_path_factory.mktemp("gpt2")
    library.model.save(str(folder))
    return folder


def loaded(files: Path, path: Path, config: dict[str, Any] | None = None) -> Tokenizer:
    for name in ("vocab.json", "merges.txt"):
        (path / name).write_bytes((files / name).read_bytes())
    (path / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return load_tokenizer(path)


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_and_texts_are_transformers(files: Path, tmp_path: Path, prefix: bool) -> None:
    oracle = GPT2Tokenizer(
        str(files / "vocab.json"), str(files / "merges.txt"), add_prefix_space=prefix
    )
    ours = loaded(files, tmp_path, {"add_prefix_space": prefix})
    for text in corpus():
        if "</s>" in text:  # an ordinary word to transformers' own
            continue
        ids = plain_ids(ours, text)
        assert ids == oracle.encode(text, add_special_tokens=False), text
        assert ours.decode(ids).removeprefix(" " * prefix) == text.removeprefix(" " * prefix)


def test_opt_has_its_beginning_and_its_end(files: Path, tmp_path: Path) -> None:
    ours = loaded(files, tmp_path, OPT)
    end = ours.token_to_id("</s>")
    assert ours.eos_token == "</s>"
    assert ours.encode("a") == [end, *ours.encode("a", add_special_tokens=False)]
    assert ours.encode_chat("a</s>")[-1] == end
    assert end in ours.special_token_ids


def test_a_class_that_cuts_texts_otherwise_is_not_guessed_at(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no tokenizer \(vocab\.json alone"):
        loaded(files, tmp_path, {"tokenizer_class": "Qwen2Tokenizer"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", b"{"),
        ("vocab.json", b"[]"),
        ("vocab.json", b'{"a": 0, "b": 0}'),
        ("vocab.json", b'{"a": -1}'),
        ("vocab.json", b'{"a": "x"}'),
        ("merges.txt", b"a b c\n"),
        ("merges.txt", b"\xff \xfe\n"),
        ("merges.txt", b"nowhere to\n"),
    ],
)
def test_damaged_files_are_refused(files: Path, tmp_path: Path, name: str, content: bytes) -> None:
    loaded(files, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=name.replace(".", r"\.")) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) not in caught.value.message
