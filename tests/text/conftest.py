"""Tokenizers of every kind that models come with, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from axion.text.template_process import TemplateProcess
from axion.text.tokenizer import Tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Hello, how are you today? I am fine, thank you.",
    "def main():\n    return 42\n",
    "你好世界。今天天气很好。",
    "مرحبا بالعالم، كيف حالك؟",
    "Emoji 😀 and 👨‍👩‍👧‍👦 and flags 🇪🇺.",
]


def byte_level() -> tokenizers.Tokenizer:
    """Like GPT-2, Llama 3 and Qwen: so few merges that most CJK characters take several tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=340,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens(["<tool_call>", "café"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
    )
    return tokenizer


def _byte_fallback_pieces() -> list[str]:
    characters = sorted(set("".join(SENTENCES[:3])) - {" "})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return [*pieces, "▁", "▁▁", "▁H", "▁th", "▁the", *characters]


def _with_sentencepiece_rules(tokenizer: tokenizers.Tokenizer, strip: bool) -> tokenizers.Tokenizer:
    prepend = [normalizers.Prepend("▁")] if strip else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def llama2() -> tokenizers.Tokenizer:
    """Sentencepiece BPE with byte fallback, a space put before the text and stripped again."""
    vocab = {piece: id for id, piece in enumerate(_byte_fallback_pieces())}
    merges = [("▁", "▁"), ("▁", "H"), ("▁th", "e")]
    vocab |= {"th": len(vocab)}
    merges[2:2] = [("t", "h"), ("▁", "th")]
    model = models.BPE(
        vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=False
    )
    return _with_sentencepiece_rules(tokenizers.Tokenizer(model), strip=True)


def gemma() -> tokenizers.Tokenizer:
    """Sentencepiece unigrams with byte fallback; a leading space belongs to the text."""
    pieces = [(piece, -float(i)) for i, piece in enumerate(_byte_fallback_pieces())]
    model = models.Unigram(pieces, unk_id=0, byte_fallback=True)
    return _with_sentencepiece_rules(tokenizers.Tokenizer(model), strip=False)


def metaspace() -> tokenizers.Tokenizer:
    """Like T5: a Metaspace decoder, no byte fallback."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>", "<s>"])
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def wordpiece() -> tokenizers.Tokenizer:
    """Like BERT."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=["[UNK]"])
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


KINDS = {
    "byte_level": byte_level,
    "llama2": llama2,
    "gemma": gemma,
    "metaspace": metaspace,
    "wordpiece": wordpiece,
}


class Pair:
    """One tokenizer twice: as the library has it, and as Axion does."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.library = KINDS[kind]()
        self.ours = Tokenizer(tokenizers.Tokenizer.from_str(self.library.to_str()))


@pytest.fixture(scope="session", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


@pytest.fixture(scope="session", params=["byte_level", "llama2", "gemma"])
def byte_pair(request: pytest.FixtureRequest) -> Pair:
    """The kinds that can write any text."""
    return Pair(request.param)


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Tokenizer:
    return Tokenizer(byte_level(), {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"})


@pytest.fixture(scope="session")
def llama2_tokenizer() -> Tokenizer:
    return Tokenizer(llama2(), {"bos_token": "<s>", "eos_token": "</s>"})


class ModelFolder:
    """A model's folder with tokenizer files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        byte_level().save(str(path / "tokenizer.json"))

    def write(self, name: str, content: Any) -> None:
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def model_folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path)


@pytest.fixture(scope="session")
def template_process() -> Iterator[TemplateProcess]:
    process = TemplateProcess()
    yield process
    process.close()


def added_token(content: str) -> dict[str, Any]:
    """A special token as `tokenizer_config.json` writes it."""
    token = AddedToken(content, special=True)
    return {"__type": "AddedToken", "content": token.content, "lstrip": token.lstrip}
