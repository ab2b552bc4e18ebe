"""What embedders and rerankers share: texts to tokens, tokens to a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from fastembed.common.types import Device
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from axion.errors import ContextLengthExceededError, InvalidRequestError
from axion.pooling.messages import MODEL_LIMIT
from axion.types import PoolingConfig

# What a local model is called within fastembed, whatever its clients call it.
LOCAL = "axion/local"


class Tokens(msgspec.Struct, frozen=True, array_like=True):
    """One text, or one pair of texts: equally long lists of token ids and segment numbers."""

    ids: list[int]
    type_ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)


class PoolingModel(Protocol):
    """A loaded model.

    Attributes:
        dim: numbers that it makes of each text.
        max_length: most tokens of a text, or of a pair together, with the special tokens.
    """

    dim: int
    max_length: int

    def tokenize(self, request: Any) -> list[Tokens]:
        """The texts of a request, in its order.

        Raises:
            InvalidRequestError: a text is too long, or its tokens are not the model's.
        """
        ...

    def compute(self, batch: list[Tokens]) -> NDArray[np.float32]:
        """`[num_texts, dim]`."""
        ...


class _Padded(msgspec.Struct):
    """One row of a batch, with the attributes that fastembed reads of an encoding."""

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


class BatchTokenizer:
    """Encodes texts without fastembed's padding and truncation, and pads what is computed together.

    It takes the place of fastembed's tokenizer: fastembed computes a batch of `Tokens` as if they
    were texts. So a text is encoded once, its length is known before its batch is formed, and
    token ids of a client take the same way.
    """

    def __init__(self, tokenizer: Tokenizer, *, add_special_tokens: bool = True) -> None:
        truncation: dict[str, Any] = tokenizer.truncation or {}
        self._padding: dict[str, Any] | None = tokenizer.padding
        self._direction: str = truncation.get("direction", "right")
        self.max_length: int = truncation.get("max_length", 2**31)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._add_special_tokens = add_special_tokens
        self._prefix, self._suffix = self._special_tokens()

    @classmethod
    def replace_in(cls, model: Any, *, add_special_tokens: bool = True) -> BatchTokenizer:
        """Put one in the place of the tokenizer of a model of fastembed's."""
        tokenizer = cls(model.tokenizer, add_special_tokens=add_special_tokens)
        model.tokenizer = tokenizer
        return tokenizer

    def encode(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], truncate_to: int | None, param: str
    ) -> list[Tokens]:
        """Texts or pairs of texts.

        Args:
            truncate_to: tokens that a longer one is cut to, or `MODEL_LIMIT`; None refuses it.
            param: the field that they come from.

        Raises:
            ContextLengthExceededError: one is too long.
            InvalidRequestError: `truncate_to` leaves no room for a token of the text.
        """
        if truncate_to is None:
            self._tokenizer.no_truncation()
        else:
            is_pair = not isinstance(texts[0], str)
            limit = self._limit(truncate_to, self._tokenizer.num_special_tokens_to_add(is_pair))
            self._tokenizer.enable_truncation(limit, direction=self._direction)
        encodings: list[Encoding] = self._tokenizer.encode_batch(
            list(texts), add_special_tokens=self._add_special_tokens
        )
        tokens = [Tokens(encoding.ids, encoding.type_ids) for encoding in encodings]
        self._check(tokens, param)
        return tokens

    def wrap(self, token_ids: list[int], truncate_to: int | None, param: str) -> Tokens:
        """Token ids of a client, with the special tokens around them where they lack these.

        Raises:
            ContextLengthExceededError: there are too many.
            InvalidRequestError: one is not in the vocabulary.
        """
        if (highest := max(token_ids)) >= self._vocab_size:
            raise InvalidRequestError(
                f"{param} has the token id {highest}, and the vocabulary of this model ends at "
                f"{self._vocab_size - 1}.",
                param=param,
            )
        prefix, suffix = self._prefix, self._suffix
        inner = token_ids
        end = len(inner) - len(suffix)
        if end >= len(prefix) and inner[: len(prefix)] == prefix and inner[end:] == suffix:
            inner = inner[len(prefix) : end]
        if truncate_to is not None:
            num_special = len(prefix) + len(suffix)
            room = self._limit(truncate_to, num_special) - num_special
            inner = inner[-room:] if self._direction == "left" else inner[:room]
        ids = [*prefix, *inner, *suffix]
        tokens = Tokens(ids, [0] * len(ids))
        self._check([tokens], param)
        return tokens

    def cut(self, text: str, max_tokens: int) -> str:
        """The beginning of a text that its first `max_tokens` tokens stand for."""
        self._tokenizer.no_truncation()
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = encoding.offsets
        return text if len(offsets) <= max_tokens else text[: offsets[max_tokens - 1][1]]

    def encode_batch(self, batch: list[Tokens], **_: Any) -> list[_Padded]:
        """What fastembed takes for the encodings of a batch: its tokens, padded."""
        padding = self._padding
        if padding is None:
            return [
                _Padded(np.array(t.ids), np.array(t.type_ids), np.ones(len(t), np.int64))
                for t in batch
            ]
        width = padding["length"] or max(map(len, batch))
        if multiple := padding["pad_to_multiple_of"]:
            width = -(-width // multiple) * multiple
        shape = (len(batch), width)
        ids = np.full(shape, padding["pad_id"], np.int64)
        type_ids = np.full(shape, padding["pad_type_id"], np.int64)
        mask = np.zeros(shape, np.int64)
        for row, tokens in enumerate(batch):
            place = slice(width - len(tokens), width)
            if padding["direction"] == "right":
                place = slice(0, len(tokens))
            ids[row, place] = tokens.ids
            type_ids[row, place] = tokens.type_ids
            mask[row, place] = 1
        return [_Padded(*row) for row in zip(ids, type_ids, mask, strict=True)]

    encode_batch_fast = encode_batch

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """What is put before and after one text: `[CLS]` and `[SEP]`, for example."""
        inner = self._ids("a", False)
        ids = self._ids("a", self._add_special_tokens)
        for start in range(len(ids)):
            if ids[start : start + len(inner)] == inner:
                return ids[:start], ids[start + len(inner) :]
        return [], []

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def _limit(self, truncate_to: int, num_special: int) -> int:
        if truncate_to == MODEL_LIMIT:
            return self.max_length
        if truncate_to <= num_special:
            raise InvalidRequestError(
                f"truncate_prompt_tokens must be above {num_special}, which this model's special "
                f"tokens take, got {truncate_to}.",
                param="truncate_prompt_tokens",
            )
        return min(truncate_to, self.max_length)

    def _check(self, texts: list[Tokens], param: str) -> None:
        for index, tokens in enumerate(texts):
            if len(tokens) > self.max_length:
                name = f"{param}[{index}]" if len(texts) > 1 else param
                raise ContextLengthExceededError(
                    f"{name} has {len(tokens)} tokens, and this model takes {self.max_length}. "
                    "Shorten it, or let it be cut with truncate_prompt_tokens: -1.",
                    param=name,
                )


def load_options(config: PoolingConfig) -> dict[str, Any]:
    """What fastembed's models are loaded with: threads and device."""
    cuda = Device.CPU if config.device == "cpu" else Device.AUTO
    return {"threads": config.num_threads, "cuda": cuda}
