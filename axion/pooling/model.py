"""What embedders and rerankers share: texts to tokens, tokens to a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from axion.errors import ContextLengthExceededError, InvalidRequestError
from axion.pooling.messages import MODEL_LIMIT, EmbedRequest

# A text with more characters than this for each token that the model takes is too long, whatever
# its tokens are: encoding megabytes takes seconds, and gigabytes of memory.
MAX_CHARS_PER_TOKEN = 100
# Encoded at once; an encoding takes many times the memory of its tokens.
_NUM_ENCODED = 64

_SHORTEN = "Shorten it, or let it be cut with truncate_prompt_tokens: -1."


class Tokens(msgspec.Struct, frozen=True):
    """One text, or one pair of texts: `[num_tokens]` token ids, and as many segment numbers."""

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]

    @classmethod
    def of(cls, ids: list[int], type_ids: list[int] | None = None) -> Tokens:
        numbers = np.zeros(len(ids), np.int32) if type_ids is None else np.array(type_ids, np.int32)
        return cls(np.array(ids, np.int32), numbers)

    def __len__(self) -> int:
        return len(self.ids)


class PoolingModel(Protocol):
    """A loaded model.

    Attributes:
        dim: numbers that it makes of each text.
        max_length: most tokens of a text, or of a pair together, with the special tokens.
        pads: a batch is computed as if all of it were as long as its longest.
    """

    dim: int
    max_length: int
    pads: bool

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

    ids: NDArray[Any]
    type_ids: NDArray[Any]
    attention_mask: NDArray[Any]


class BatchTokenizer:
    """Encodes texts without fastembed's padding and truncation, and pads what is computed together.

    It takes the place of fastembed's tokenizer: fastembed computes a batch of `Tokens` as if they
    were texts. So a text is encoded once, its length is known before its batch is formed, and
    token ids of a client take the same way.

    Args:
        max_length: most tokens of a text; None: what tokenizer.json cuts to.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
    ) -> None:
        truncation: dict[str, Any] = tokenizer.truncation or {}
        self._padding: dict[str, Any] | None = tokenizer.padding
        self._direction: str = truncation.get("direction", "right")
        self.max_length: int = max_length or truncation.get("max_length", 2**31)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._add_special_tokens = add_special_tokens
        self._prefix, self._suffix = self._special_tokens()

    @classmethod
    def replace_in(cls, model: Any, *, add_special_tokens: bool = True) -> BatchTokenizer:
        """Put one in the place of the tokenizer of a model of fastembed's."""
        tokenizer = cls(model.tokenizer, add_special_tokens=add_special_tokens)
        model.tokenizer = tokenizer
        return tokenizer

    def encode_inputs(self, request: EmbedRequest) -> list[Tokens]:
        """The texts or token ids of a request.

        Raises:
            InvalidRequestError: as `encode` and `wrap`.
        """
        texts = [text for text in request.inputs if isinstance(text, str)]
        if texts:
            return self.encode(texts, request.truncate_to, "input")
        return [
            self.wrap(ids, request.truncate_to, "input")
            for ids in request.inputs
            if not isinstance(ids, str)
        ]

    def encode(
        self, texts: Sequence[str | tuple[str, str]], truncate_to: int | None, param: str
    ) -> list[Tokens]:
        """Texts or pairs of texts.

        Args:
            truncate_to: tokens that a longer one is cut to, or `MODEL_LIMIT`; None refuses it.
            param: the field that they come from.

        Raises:
            ContextLengthExceededError: one is too long.
            InvalidRequestError: `truncate_to` leaves no room for a token of the text, or it has
                none.
        """
        if truncate_to is None:
            self._tokenizer.no_truncation()
        else:
            is_pair = not isinstance(texts[0], str)
            limit = self._limit(truncate_to, self._tokenizer.num_special_tokens_to_add(is_pair))
            self._tokenizer.enable_truncation(limit, direction=self._direction)
        names = [param] if len(texts) == 1 else [f"{param}[{i}]" for i in range(len(texts))]
        encoded: list[Tokens] = []
        for start in range(0, len(texts), _NUM_ENCODED):
            part = slice(start, start + _NUM_ENCODED)
            encodings: list[Encoding] = self._tokenizer.encode_batch_fast(
                [
                    self._bounded(text, truncate_to, name)
                    for text, name in zip(texts[part], names[part], strict=True)
                ],
                add_special_tokens=self._add_special_tokens,
            )
            for encoding, name in zip(encodings, names[part], strict=True):
                self._check(len(encoding), name)
                encoded.append(Tokens.of(encoding.ids, encoding.type_ids))
        return encoded

    def wrap(self, token_ids: list[int], truncate_to: int | None, param: str) -> Tokens:
        """Token ids of a client, with the special tokens around them where they lack these.

        Raises:
            ContextLengthExceededError: there are too many.
            InvalidRequestError: one is not in the vocabulary.
        """
        if (highest := max(token_ids)) >= self.vocab_size:
            raise InvalidRequestError(
                f"{param} has the token id {highest}, and the vocabulary of this model ends at "
                f"{self.vocab_size - 1}.",
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
        self._check(len(ids), param)
        return Tokens.of(ids)

    def cut(self, text: str, max_tokens: int) -> str:
        """The beginning of a text that its first `max_tokens` tokens stand for."""
        self._tokenizer.no_truncation()
        text = text[: max_tokens * MAX_CHARS_PER_TOKEN]
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = encoding.offsets
        return text if len(offsets) <= max_tokens else text[: offsets[max_tokens - 1][1]]

    def encode_batch(self, batch: list[Tokens], **_: Any) -> list[_Padded]:
        """What fastembed takes for the encodings of a batch: its tokens, padded."""
        padding = self._padding
        if padding is None:
            return [
                _Padded(tokens.ids, tokens.type_ids, np.ones(len(tokens), np.int32))
                for tokens in batch
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

    def _bounded(
        self, text: str | tuple[str, str], truncate_to: int | None, name: str
    ) -> str | tuple[str, str]:
        """The text, cut where it is longer than any that fits, or refused."""
        if isinstance(text, tuple):
            one, two = (self._bounded(part, truncate_to, name) for part in text)
            assert isinstance(one, str)
            assert isinstance(two, str)
            return one, two
        limit = self.max_length * MAX_CHARS_PER_TOKEN
        if len(text) <= limit:
            return text
        if truncate_to is None:
            raise ContextLengthExceededError(
                f"{name} has {len(text)} characters, and this model takes {self.max_length} "
                f"tokens. {_SHORTEN}",
                param=name,
            )
        return text[-limit:] if self._direction == "left" else text[:limit]

    def _check(self, num_tokens: int, name: str) -> None:
        if not num_tokens:
            raise InvalidRequestError(f"{name} has no token that this model knows.", param=name)
        if num_tokens > self.max_length:
            raise ContextLengthExceededError(
                f"{name} has {num_tokens} tokens, and this model takes {self.max_length}. "
                f"{_SHORTEN}",
                param=name,
            )


def scaled_to_length_1(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[num_texts, dim]`; a vector of zeros stays one."""
    norms: Any = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled
