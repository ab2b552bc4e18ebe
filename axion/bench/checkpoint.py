"""Checkpoints with random weights in the shape of real models: speed without a download.

The tensors are those that the loader expects of a config.json. Every token of a vocabulary but the
first few is plain text, so that a server which streams text sends each token as it comes, and an
end of sequence is never the likeliest token: answers are as long as they may be.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import statistics
import string
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from axion.bench.workload import WORDS
from axion.engine.expected_tensors import expected_tensors
from axion.engine.loader import build_model
from axion.errors import ModelLoadError

Progress = Callable[[int, int], None]

_STD = 0.02
_CHUNK = 2**24
_SPECIAL_TOKENS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_END = 256  # behind the bytes
_SPACE = "Ġ"  # as byte-level tokenizers write it
_TOKEN_MATRICES = ("embed_tokens.weight", "lm_head.weight")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_shape(config: dict[str, Any], folder: Path, on_progress: Progress | None = None) -> None:
    """Write a checkpoint of `config` into `folder`, if it is not there already.

    Args:
        on_progress: called with (bytes written, bytes in all).

    Raises:
        ModelLoadError: the folder holds something else or cannot be written, or the architecture
            is not known.
    """
    config = {"dtype": "bfloat16", "bos_token_id": None, "eos_token_id": _END, **config}
    try:
        if folder.exists() and any(folder.iterdir()):
            written = folder / "config.json"
            if written.is_file() and json.loads(written.read_text()) == config:
                return
            raise ModelLoadError(f"{folder} holds something else. Name an empty folder, or none.")
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        part.mkdir(parents=True)
        try:
            _write(part, config, on_progress or (lambda *_: None))
            part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder} cannot be written: {error}.") from None


def _write(folder: Path, config: dict[str, Any], on_progress: Progress) -> None:
    files = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": _END, "do_sample": False},
        "tokenizer.json": tokenizer(config["vocab_size"]),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|end|>",
            "pad_token": "<|end|>",
            "model_max_length": config["max_position_embeddings"],
            "chat_template": _CHAT_TEMPLATE,
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    _write_weights(folder / "model.safetensors", expected_tensors(build_model(config)), on_progress)


def tokenizer(vocab_size: int) -> dict[str, Any]:
    """A tokenizer.json of exactly `vocab_size` tokens: bytes, special tokens, `WORDS` with the
    space before them, and then all strings of letters, the short ones first.

    Raises:
        ModelLoadError: the size is too small for bytes and special tokens.
    """
    first = _END + len(_SPECIAL_TOKENS)
    if vocab_size < first:
        raise ModelLoadError(f"A vocabulary needs at least {first} tokens, got {vocab_size}.")
    vocab = [*sorted(ByteLevel.alphabet()), *_SPECIAL_TOKENS]
    # Each token is one that is here before it, and a letter.
    longer = itertools.islice(_strings(), vocab_size - first)
    merges = [[text[:-1], text[-1]] for text in longer]
    vocab += ["".join(pair) for pair in merges]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": _END + index, "content": token, **plain, "special": True}
            for index, token in enumerate(_SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(vocab)},
            "merges": merges,
        },
    }


def _strings() -> Iterator[str]:
    begins = (_SPACE + word[:end] for word in WORDS for end in range(1, len(word) + 1))
    yield from dict.fromkeys(begins)
    for length in itertools.count(2):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)


def _write_weights(file: Path, tensors: dict[str, tuple[int, ...]], on_progress: Progress) -> None:
    """Normally distributed bfloat16 in the format of safetensors; norms are one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    for name, shape in tensors.items():
        end = total + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [total, end]}
        total = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    random = np.random.Generator(np.random.SFC64(0))
    normal = _normal_bfloat16()
    one = _bfloat16(np.ones(1, np.float32))
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in tensors.items():
            size = math.prod(shape)
            # No byte and no special token is ever the likeliest.
            rows = _END + len(_SPECIAL_TOKENS) if name.endswith(_TOKEN_MATRICES) else 0
            empty = rows * math.prod(shape[1:])
            out.write(bytes(2 * empty))
            for start in range(empty, size, _CHUNK):
                count = min(_CHUNK, size - start)
                if len(shape) == 1:
                    out.write(one.repeat(count).tobytes())
                else:
                    out.write(normal[random.integers(0, 2**16, count, np.uint16)].tobytes())
            on_progress(header[name]["data_offsets"][1], total)


def _normal_bfloat16() -> np.ndarray:
    """So many quantiles of a normal distribution that 16 random bits choose one: a draw from it,
    ten times as fast."""
    inverse = statistics.NormalDist(sigma=_STD).inv_cdf
    return _bfloat16(np.array([inverse((i + 0.5) / 2**16) for i in range(2**16)], np.float32))


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 `values`, rounded, as uint16."""
    bits = values.view(np.uint32)
    return ((bits + 0x8000) >> 16).astype(np.uint16)
