"""Tokenizers that come without `tokenizer.json`: one file for each format they come in.

Each is turned once, at load, into a tokenizer of the `tokenizers` library, so that everything
behind it (streaming, grammars, lengths) has one kind to work with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axion.text.tokenizer_formats import gpt2, sentencepiece, tekken, tiktoken
from axion.text.tokenizer_formats.common import Converted, read_file
from axion.text.tokenizer_formats.tekken import FILE as TEKKEN_FILE
from axion.text.tokenizer_formats.tekken import chat_format

__all__ = ["TEKKEN_FILE", "Converted", "chat_format", "convert"]


def convert(path: Path, config: dict[str, Any]) -> Converted | None:
    """The tokenizer of a model folder without `tokenizer.json`; None if none is known there.

    Args:
        config: `tokenizer_config.json`.

    Raises:
        ModelLoadError: the file is damaged, or has what cannot be computed; names the file.
    """
    if (path / TEKKEN_FILE).is_file():
        return tekken.convert(path / TEKKEN_FILE)
    files = sorted(file for pattern in ("*.model", "*.tiktoken") for file in path.glob(pattern))
    for file in files:
        data = read_file(file)
        if tiktoken.is_ranks(data):
            return tiktoken.convert(file.name, data, path, config)
        if file.suffix == ".model":
            return sentencepiece.convert(file.name, data, path, config)
    return gpt2.convert(path, config) if gpt2.is_known(path, config) else None
