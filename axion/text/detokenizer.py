"""Token ids to text while they come."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence

from axion.text.tokenizer import Tokenizer

_LONGEST_CHARACTER = 4  # bytes in UTF-8


class IncrementalDetokenizer:
    """Turns one sequence's output tokens into text as they arrive.

    What `push` and `flush` return, put together, is what the output tokens add to the text of
    the prompt. A character is held back until its last byte is there, so U+FFFD stands only
    where the bytes can no longer become UTF-8. The work a token is constant.

    A prompt that ends inside a character has it completed by the output: the character then
    belongs to the answer. If the output does not complete it, the broken piece was the prompt's
    and is not shown.

    (`tokenizers.decoders.DecodeStream` repeats the whole prompt in that case, and holds back
    without bound what is not UTF-8.)

    Args:
        visible_token_ids: special tokens that are never skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        visible_token_ids: Collection[int] = (),
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._visible_token_ids = visible_token_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf8.decode(self._tail(prompt_token_ids))
        # What is not the output's own: the prompt's broken character, or the leading space of
        # a text that the output begins.
        self._unwanted = ""
        if self._utf8.getstate()[0]:
            self._unwanted = "\N{REPLACEMENT CHARACTER}"
        elif tokenizer.strips_leading_space and not any(map(self._bytes, prompt_token_ids)):
            self._unwanted = " "

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that is certain after these further tokens; often a character behind them."""
        return self._own(self._utf8.decode(b"".join(map(self._bytes, token_ids))))

    def flush(self) -> str:
        """The rest: U+FFFD if the sequence ended inside a character."""
        return self._own(self._utf8.decode(b"", final=True))

    def _own(self, text: str) -> str:
        if text and self._unwanted:
            text = text.removeprefix(self._unwanted)
            self._unwanted = ""
        return text

    def _bytes(self, token_id: int) -> bytes:
        skip = self._skip_special_tokens and token_id not in self._visible_token_ids
        return self._tokenizer.bytes_of((token_id,), skip_special_tokens=skip)

    def _tail(self, token_ids: Sequence[int]) -> bytes:
        """The end of a text, long enough to show whether it stops inside a character."""
        tail = b""
        for token_id in reversed(token_ids):
            tail = self._bytes(token_id) + tail
            if len(tail) >= _LONGEST_CHARACTER:
                break
        return tail
