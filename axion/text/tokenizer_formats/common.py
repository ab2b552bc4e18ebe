from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tokenizers
from tokenizers import AddedToken, decoders, processors

from axion.errors import ModelLoadError

# The largest in use have some 20 MB, 900,000 tokens of at most 500 bytes, and 600,000 merges. A
# token of n bytes costs n², and may be made in n ways.
MAX_FILE_BYTES = 256 * 2**20
MAX_TOKEN_LENGTH = 1024
MAX_TOKENS = 2**20
_MAX_LENGTH_IN_ALL = 2**24
_MAX_MERGES = 2**21

SPACE = "▁"  # as sentencepiece writes it
# How texts become words, in tiktoken's encoding of that name and in Qwen's.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CL100K.replace("{1,3}", "")

Piece = TypeVar("Piece", str, bytes)


class Converted(NamedTuple):
    """A tokenizer of the library.

    Attributes:
        special_tokens: `bos_token` and its like, as far as the file itself names them.
    """

    tokenizer: tokenizers.Tokenizer
    special_tokens: dict[str, str]


def read_file(file: Path) -> bytes:
    """Raises: ModelLoadError: it cannot be read, or is larger than any tokenizer is."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelLoadError(f"{file.name} cannot be read: {error.strerror}.") from None
    if len(data) > MAX_FILE_BYTES:
        raise ModelLoadError(
            f"{file.name} is larger than {MAX_FILE_BYTES // 2**20} MiB, which no real tokenizer is."
        )
    return data


def merges_of(ranks: Mapping[Piece, float]) -> list[tuple[Piece, Piece]]:
    """Pairs of tokens in the order in which they merge, for a format that only ranks tokens.

    Both sentencepiece and tiktoken merge the two neighbours whose union ranks first, and of
    equal ones the leftmost. Here every way to make a token of two others becomes a merge of the
    token's rank; of equal ranks the longer left part goes first, which lets a run of spaces grow
    from the left, as theirs does.

    Args:
        ranks: lower merges earlier.

    Raises:
        ModelLoadError: there are more than any real tokenizer has.
    """
    merges: list[tuple[float, int, int, Piece, Piece]] = []
    too_many = sum(map(len, ranks)) > _MAX_LENGTH_IN_ALL
    for token, rank in ranks.items():
        if too_many or len(merges) > _MAX_MERGES:
            raise ModelLoadError(
                "The model's tokenizer is damaged: its tokens are too long together, or made of "
                "each other in too many ways."
            )
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                merges.append((rank, -cut, -len(right), left, right))
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


def sentencepiece_decoder(*, has_bytes: bool, has_prefix: bool) -> Any:
    """From pieces to a text.

    Args:
        has_bytes: some pieces are single bytes.
        has_prefix: a space was put before the text.
    """
    steps: list[Any] = [decoders.Replace(SPACE, " ")]
    steps += [decoders.ByteFallback()] * has_bytes + [decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * has_prefix)


def added_tokens(path: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """By id: `added_tokens_decoder` of tokenizer_config.json, else the older added_tokens.json.

    Raises:
        ModelLoadError: they are not of their form.
    """
    try:
        if decoder := config.get("added_tokens_decoder"):
            return {
                _id(id): AddedToken(
                    token["content"],
                    lstrip=bool(token.get("lstrip")),
                    rstrip=bool(token.get("rstrip")),
                    normalized=False,
                    special=bool(token.get("special")),
                )
                for id, token in decoder.items()
            }
        file = path / "added_tokens.json"
        older = json.loads(read_file(file)) if file.is_file() else {}
        return {
            _id(id): AddedToken(token, normalized=False, special=False)
            for token, id in older.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise ModelLoadError(
            "The added tokens of the tokenizer (tokenizer_config.json or added_tokens.json) are "
            "not of their form: ids and tokens."
        ) from None


def _id(id: Any) -> int:
    number = int(id)
    if not 0 <= number < MAX_TOKENS:
        raise ValueError(id)
    return number


def add_around(
    tokenizer: tokenizers.Tokenizer, *, before: str | None = None, after: str | None = None
) -> None:
    """Have the tokenizer write `before` and `after` a text, where it has these tokens."""
    ids = {
        token: id
        for token in (before, after)
        if token and (id := tokenizer.token_to_id(token)) is not None
    }
    around = [part for part in (before, "$A", after) if part == "$A" or part in ids]
    if ids:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around, special_tokens=list(ids.items())
        )


def named(config: dict[str, Any], name: str) -> str | None:
    """`bos_token` and its like of tokenizer_config.json, in each of its forms."""
    token = config.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
