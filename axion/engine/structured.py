"""Token masks of sequences that must follow a grammar, computed while the model runs."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
from llguidance import LLExecutor, LLMatcher

from axion.engine.scheduler import SampledToken
from axion.engine.sequence import Sequence

logger = logging.getLogger("axion.engine")

_TOO_COMPLEX = "The grammar became too complex while the answer was written. Simplify it."
_DEAD_END = "The grammar allows nothing after what was written: a part of it matches no text."


class TokenMask(NamedTuple):
    """The tokens that may come next.

    Attributes:
        rows: the rows of the logits that the mask is for.
        bits: [len(rows), at least vocab_size / 8] uint8; bit i % 8 of byte i // 8 is token i.
    """

    rows: list[int]
    bits: np.ndarray


class StructuredOutput:
    """Keeps the sequences of an engine to their grammars.

    Where a sequence is in its grammar depends on its output alone, so that a preemption does not
    touch it.

    Args:
        eos_token_ids: the model's own; without one, masks have a column more than the logits.
    """

    def __init__(
        self, *, vocab_size: int, eos_token_ids: tuple[int, ...], max_num_seqs: int
    ) -> None:
        self._eos_token_ids = eos_token_ids
        num_tokens = vocab_size + (not eos_token_ids)
        self._words = np.zeros((max_num_seqs, -(-num_tokens // 32)), np.uint32)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="token-masks")

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor()

    def start(self, sequences: list[Sequence]) -> Future[TokenMask] | None:
        """Begin to compute the mask of a step, while the model runs; None if none is needed."""
        constrained = {row: s for row, s in enumerate(sequences) if s.matcher is not None}
        return self._thread.submit(self._compute, constrained) if constrained else None

    def _compute(self, constrained: dict[int, Sequence]) -> TokenMask:
        words = self._words[: len(constrained)]
        matchers = [(s.matcher, i) for i, s in enumerate(constrained.values()) if s.matcher]
        self._executor.unsafe_compute_mask_ptr(
            matchers, words.ctypes.data, words.strides[0], len(matchers)
        )
        for i, sequence in enumerate(constrained.values()):
            if sequence.params.ignore_eos:
                for token_id in self._eos_token_ids:
                    words[i, token_id // 32] &= ~np.uint32(1 << token_id % 32)
        return TokenMask(list(constrained), words.view(np.uint8))

    def advance(self, sequences: list[Sequence], sampled: list[SampledToken]) -> list[SampledToken]:
        """Book the sampled tokens with the matchers.

        Returns:
            `sampled`, where a token that the grammar lets nothing follow `is_final`, and one
            whose matcher has failed carries an error.
        """
        return [
            token if sequence.matcher is None else _advance(sequence, sequence.matcher, token)
            for sequence, token in zip(sequences, sampled, strict=True)
        ]


def _advance(sequence: Sequence, matcher: LLMatcher, token: SampledToken) -> SampledToken:
    if token.error is not None:
        return token
    token_id = token.token_id
    if token_id in sequence.eos_token_ids:
        # A matcher that has failed would let the sequence end here.
        if matcher.is_accepting() and not matcher.is_error():
            return token
    elif token_id in sequence.stop_token_ids:
        return token
    elif matcher.consume_token(token_id):
        return msgspec.structs.replace(token, is_final=True) if matcher.is_stopped() else token
    error = matcher.get_error().partition("\n")[0]
    logger.warning("a grammar failed: %s", error)
    is_dead_end = error.startswith("NoExtension")
    return SampledToken(token_id, error=_DEAD_END if is_dead_end else _TOO_COMPLEX)
