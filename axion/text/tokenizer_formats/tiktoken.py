"""Files of ranks as tiktoken has them: a token in base64 and its rank on each line.

The file lacks the pattern that cuts a text into words and the special tokens: of each family that
publishes such files they are written here (github.com/openai/tiktoken).
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from axion.errors import ModelLoadError
from axion.text.byte_alphabet import to_alphabet
from axion.text.tokenizer_formats.common import (
    CL100K,
    MAX_TOKEN_LENGTH,
    MAX_TOKENS,
    QWEN2,
    Converted,
    add_around,
    added_tokens,
    merges_of,
    named,
)

_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


class _Family(NamedTuple):
    """What the code of a family of models adds to its file.

    Attributes:
        special_tokens: with the ids that follow the last rank, where tokenizer_config.json
            has none.
        composed: texts are brought to normal form C first.
    """

    pattern: str
    special_tokens: tuple[str, ...] = ()
    bos_token: str | None = None
    eos_token: str | None = None
    composed: bool = False


KIMI = (
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


def _llama3_special_tokens() -> tuple[str, ...]:
    tokens = []
    for i in range(256):
        reserved = i - sum(place < i for place in _LLAMA3_NAMED)
        tokens.append(_LLAMA3_NAMED.get(i, f"<|reserved_special_token_{reserved}|>"))
    return tuple(tokens)


_QWEN = _Family(
    QWEN2,
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
    eos_token="<|endoftext|>",
    composed=True,
)
_LLAMA3 = _Family(
    CL100K, _llama3_special_tokens(), bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
)
_BY_FILE = {"qwen.tiktoken": _QWEN, "tiktoken.model": _Family(KIMI)}
_BY_NUM_RANKS = {128_000: _LLAMA3}
_OTHERS = _Family(CL100K)  # GLM-4's first files


def is_ranks(data: bytes) -> bool:
    return _FIRST_LINE.match(data) is not None


def convert(name: str, data: bytes, path: Path, config: dict[str, Any]) -> Converted:
    """The tokenizer of a list of ranks.

    Raises:
        ModelLoadError: a line is damaged, or a token is there twice.
    """
    ranks: dict[bytes, int] = {}
    try:
        for line in data.splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        raise ModelLoadError(
            f"{name} is damaged in line {len(ranks) + 1}: expected a token in base64 and its "
            "rank. Download the model again."
        ) from None
    family = _BY_FILE.get(name) or _BY_NUM_RANKS.get(len(ranks)) or _OTHERS
    added = added_tokens(path, config) or {
        len(ranks) + i: AddedToken(token, normalized=False, special=True)
        for i, token in enumerate(family.special_tokens)
    }
    library = byte_pairs(name, ranks, added, family.pattern)
    if family.composed:
        library.normalizer = normalizers.NFC()
    own = {"bos_token": family.bos_token, "eos_token": family.eos_token}
    special = {key: token for key, token in own.items() if token}
    ends = {key: named(config, key) or special.get(key) for key in own}
    add_around(
        library,
        before=ends["bos_token"] if config.get("add_bos_token", "bos_token" in special) else None,
        after=ends["eos_token"] if config.get("add_eos_token", False) else None,
    )
    return Converted(library, special)


def byte_pairs(
    name: str, ranks: dict[bytes, int], added: dict[int, AddedToken], pattern: str
) -> tokenizers.Tokenizer:
    """Byte pairs that merge by rank, in the words that `pattern` cuts a text into.

    Args:
        ranks: of each token, which is its id.
        added: ids and tokens that no text's words become.

    Raises:
        ModelLoadError: not every byte has a token, two have one id, or the pattern is none.
    """
    ids = {to_alphabet(token): rank for token, rank in ranks.items()}
    if (
        not all(bytes([byte]) in ranks for byte in range(256))
        or max(map(len, ranks)) > MAX_TOKEN_LENGTH
        or not all(0 <= rank < MAX_TOKENS for rank in ranks.values())
    ):
        raise ModelLoadError(f"{name} is damaged: it lacks bytes, or has impossible tokens.")
    contents = {token.content: id for id, token in added.items()}
    both = ids | contents
    if len(set(both.values())) < len(ids) + len(added) or len(both) < len(ids) + len(added):
        raise ModelLoadError(f"{name} is damaged: two of its tokens are one.")
    merges = merges_of(ranks)
    library = tokenizers.Tokenizer(
        models.BPE(
            both,
            [(to_alphabet(left), to_alphabet(right)) for left, right in merges],
            ignore_merges=True,
        )
    )
    try:
        words = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception:  # the library raises nothing narrower
        raise ModelLoadError(f"{name} is damaged: its pattern is no regular expression.") from None
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    library.add_tokens([token for _, token in sorted(added.items())])
    return library
