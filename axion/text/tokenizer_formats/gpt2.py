"""GPT-2's `vocab.json` and `merges.txt`, as OPT and other older models have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from axion.errors import ModelLoadError
from axion.text.tokenizer_formats.common import (
    MAX_TOKENS,
    Converted,
    add_around,
    added_tokens,
    named,
    read_file,
)

VOCABULARY, MERGES = "vocab.json", "merges.txt"
_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizer", "CodeGenTokenizerFast")
_END = "<|endoftext|>"


def is_known(path: Path, config: dict[str, Any]) -> bool:
    """Whether the folder has both files, and no class that cuts texts in another way."""
    known = config.get("tokenizer_class", _CLASSES[0]) in _CLASSES
    return known and (path / VOCABULARY).is_file() and (path / MERGES).is_file()


def convert(path: Path, config: dict[str, Any]) -> Converted:
    """The tokenizer of the folder `path`.

    Raises:
        ModelLoadError: a file is damaged.
    """
    added = added_tokens(path, config)
    try:
        vocab = json.loads(read_file(path / VOCABULARY))
        version, *lines = read_file(path / MERGES).decode().split("\n")
        if not version.startswith("#version"):
            lines.insert(0, version)
        merges = [(left, right) for left, right in (line.split() for line in lines if line)]
        ids = list(vocab.values())
        if len(set(ids)) < len(ids) or not all(0 <= id < MAX_TOKENS for id in ids):
            raise ValueError
        vocab |= {token.content: id for id, token in added.items()}
        model = models.BPE(vocab, merges)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ModelLoadError(
            f"{VOCABULARY} or {MERGES} is damaged. Download the model again."
        ) from None
    except ModelLoadError:
        raise
    except Exception:  # the library raises nothing narrower
        raise ModelLoadError(f"{MERGES} merges tokens that {VOCABULARY} does not have.") from None
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(config.get("add_prefix_space", False))
    )
    library.decoder = decoders.ByteLevel()
    own = {"bos_token": _END, "eos_token": _END} if _END in vocab else {}
    ends = {key: named(config, key) or own.get(key) for key in ("bos_token", "eos_token")}
    special = [AddedToken(end, normalized=False, special=True) for end in ends.values() if end]
    library.add_tokens([token for token in special if token.content in vocab])
    library.add_tokens([token for _, token in sorted(added.items())])
    add_around(
        library,
        before=ends["bos_token"] if config.get("add_bos_token", False) else None,
        after=ends["eos_token"] if config.get("add_eos_token", False) else None,
    )
    return Converted(library, own)
