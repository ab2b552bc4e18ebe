"""Tokenizers whose patterns nobody knows: they encode where they can be ended.

How a text is cut into words is a regular expression of the model's, and one that backtracks
(`(a+)+$`) holds its thread for hours over a short text, out of anybody's reach. The usual patterns
are known not to, whatever the text is. A tokenizer with another one encodes in a `BoundedProcess`.
"""

from __future__ import annotations

import array
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from axion.errors import InternalError, InvalidRequestError, ModelLoadError
from axion.text import tokenizer_worker
from axion.text.bounded_process import BoundedProcess, StoppedError
from axion.text.tokenizer import (
    DAMAGED,
    FAILED_ON_TEXT,
    Tokenizer,
    as_utf8,
    panics_as,
    read_library_tokenizer,
)
from axion.text.tokenizer_formats.common import CL100K, QWEN2
from axion.text.tokenizer_formats.gguf import PATTERNS
from axion.text.tokenizer_formats.sentencepiece import EXTRA_SPACES
from axion.text.tokenizer_formats.tiktoken import KIMI
from axion.text.tokenizer_worker import FAILED, PLAIN, WITH_SPECIAL

# For one text, in seconds.
TIMEOUT_S = 10.0

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Their time is that of the text's length, or of the length of its runs of spaces.
KNOWN_PATTERNS = frozenset(
    {
        *(PATTERNS - {r"\s+$"}),  # this one looks for the end of the text from each space
        *(CL100K, QWEN2, KIMI, EXTRA_SPACES),
        # As files of the tokenizers library write what others write differently.
        *(_GPT2, _GPT2.replace(r" ?\p{N}+", r"\p{N}")),
        *(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[0-9]", r"\d", r"\s+", " {2,}"),
        "[一-龥぀-ゟ゠-ヿ]+",  # noqa: RUF001
        r" ?[^(\s|[.,!?…。，、।۔،])]+",  # noqa: RUF001
    }
)


class BoundedTokenizer(Tokenizer):
    """One that encodes in a process of its own, within bounds of time and memory.

    Args:
        path: of the model, from which that process loads the same tokenizer.
    """

    max_quick_chars = -1

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, special_tokens: dict[str, str], path: Path
    ) -> None:
        super().__init__(tokenizer, special_tokens)
        command = [sys.executable, "-m", tokenizer_worker.__name__, str(path)]
        self._process = BoundedProcess(command, "tokenizes", TIMEOUT_S)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """As `Tokenizer.encode`.

        Raises:
            InvalidRequestError: the text takes too long or too much memory, too.
        """
        kind = WITH_SPECIAL if add_special_tokens else PLAIN
        try:
            reply = self._process.call(kind + as_utf8(text))
        except StoppedError as error:
            raise InvalidRequestError(
                f"The model's tokenizer was stopped on this text: {error}."
            ) from None
        if reply == FAILED:
            raise InternalError(FAILED_ON_TEXT)
        ids = array.array("I")
        ids.frombytes(reply[1:])
        return ids.tolist()

    def close(self) -> None:
        self._process.close()


def load_bounded_tokenizer(path: Path) -> Tokenizer:
    """As `load_tokenizer`, for a process that no text may hold up.

    Raises:
        ModelLoadError: as there; or its decoder has a regular expression.
    """
    with panics_as(ModelLoadError(DAMAGED)):
        library, special_tokens = read_library_tokenizer(path)
        if any(True for _ in _patterns(library.decoder)):
            raise ModelLoadError(
                "The decoder of the model's tokenizer has a regular expression, which is not "
                "supported."
            )
        steps = (library.normalizer, library.pre_tokenizer)
        if all(is_known(pattern) for step in steps for pattern in _patterns(step)):
            return Tokenizer(library, special_tokens)
        return BoundedTokenizer(library, special_tokens, path)


def is_known(pattern: str) -> bool:
    """Whether its time is known to be bounded by the text's length.

    That of a choice between plain strings is.
    """
    return pattern in KNOWN_PATTERNS or not re.search(
        r"[\\*+?{}()\[\]]", re.sub(r"\\\W", "", pattern)
    )


def _patterns(component: Any) -> Iterator[str]:
    """The regular expressions in a step of a tokenizer and those that it consists of."""
    if component is None:
        return
    remaining: list[Any] = [json.loads(component.__getstate__())]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            if isinstance(pattern := value.get("Regex"), str):
                yield pattern
            remaining += value.values()
        elif isinstance(value, list):
            remaining += value
