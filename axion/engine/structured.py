"""Keeps sequences to their grammars: masks for the sampler, and tokens that need no sampling."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
from llguidance import LLExecutor, LLMatcher

from axion.engine.sequence import Sequence
from axion.engine.step import SampledToken, ScheduledSequence

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
        num_threads: that compute masks; more than one pays only where the model computes
            elsewhere.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        max_num_seqs: int,
        num_threads: int = 1,
    ) -> None:
        self._eos_token_ids = eos_token_ids
        num_tokens = vocab_size + (not eos_token_ids)
        self._words = np.zeros((max_num_seqs, -(-num_tokens // 32)), np.uint32)
        self._num_threads = num_threads

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor(self._num_threads)

    def mask(self, sampling: list[ScheduledSequence]) -> TokenMask | None:
        """The mask of a step; None if none is needed.

        Args:
            sampling: sequences with a row of logits for the next token, and one behind each draft.
        """
        constrained: list[Sequence] = []  # of each row of the mask
        rows: list[int] = []
        matchers: list[tuple[LLMatcher, int, list[int]]] = []
        first = 0
        for entry in sampling:
            sequence, num_rows = entry.sequence, entry.num_rows
            if sequence.matcher is not None:
                matchers.append((sequence.matcher, len(rows), entry.draft_token_ids))
                rows += range(first, first + num_rows)
                constrained += [sequence] * num_rows
            first += num_rows
        if not rows:
            return None
        if len(rows) > len(self._words):
            self._words = np.zeros((len(rows), self._words.shape[1]), np.uint32)
        words = self._words[: len(rows)]
        address, num_bytes = words.ctypes.data, words.strides[0]
        if self._num_threads > 1:
            plain = [(matcher, i) for matcher, i, drafts in matchers if not drafts]
            drafting = [entry for entry in matchers if entry[2]]
            if plain:  # neither takes an empty list
                self._executor.unsafe_compute_mask_ptr(plain, address, num_bytes, len(rows))
            if drafting:
                self._executor.unsafe_compute_mask_ptr_with_draft_token(
                    drafting, address, num_bytes, len(rows)
                )
        else:
            for matcher, i, drafts in matchers:
                _compute_masks(matcher, address + i * num_bytes, num_bytes, drafts)
        for i, sequence in enumerate(constrained):
            if sequence.params.ignore_eos:
                for token_id in self._eos_token_ids:
                    words[i, token_id // 32] &= ~np.uint32(1 << token_id % 32)
        return TokenMask(rows, words.view(np.uint8))


def _compute_masks(matcher: LLMatcher, address: int, num_bytes: int, drafts: list[int]) -> None:
    """The mask of what comes next, and behind each draft; the matcher stays where it is."""
    matcher.unsafe_compute_mask_ptr(address, num_bytes)
    for i, token_id in enumerate(drafts, 1):
        matcher.consume_token(token_id)
        matcher.unsafe_compute_mask_ptr(address + i * num_bytes, num_bytes)
    if drafts:
        matcher.rollback(len(drafts))


def advance(sequence: Sequence, token: SampledToken) -> SampledToken:
    """Book a sampled token with the sequence's matcher, if it has one.

    Returns:
        `token`, with the tokens that the grammar lets follow alone; a token that it lets nothing
        follow `is_final`, and one whose matcher has failed carries an error.
    """
    matcher = sequence.matcher
    if matcher is None or token.error is not None:
        return token
    token_id = token.token_id
    if token_id in sequence.eos_token_ids:
        # A matcher that has failed would let the sequence end here.
        if matcher.is_accepting() and not matcher.is_error():
            return token
    elif token_id in sequence.stop_token_ids:
        return token
    elif matcher.consume_token(token_id):
        # Log probabilities are those of a choice, so who wants them has every token sampled, and
        # so has who forbids tokens.
        is_sampled = token.logprobs is not None or sequence.params.forbids_tokens
        forced = [] if is_sampled else matcher.compute_ff_tokens()
        if not forced or matcher.consume_tokens(forced):
            if not forced and not matcher.is_stopped():
                return token
            return msgspec.structs.replace(token, forced=forced, is_final=matcher.is_stopped())
    error = matcher.get_error().partition("\n")[0]
    logger.warning("a grammar failed: %s", error)
    is_dead_end = error.startswith("NoExtension")
    return SampledToken(token_id, error=_DEAD_END if is_dead_end else _TOO_COMPLEX)
