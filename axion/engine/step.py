"""What a step computes of a sequence, and what comes of it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from axion.engine.sequence import Sequence
from axion.types import TokenLogprobs


class ScheduledSequence(NamedTuple):
    """`num_scheduled_tokens` tokens from `num_computed_tokens` on are computed in this step.

    Behind them come the drafts: guesses at what follows the sequence's end.
    """

    sequence: Sequence
    num_scheduled_tokens: int
    draft_token_ids: list[int]

    @property
    def end(self) -> int:
        """The first of the sequence's own tokens that the step leaves out."""
        return self.sequence.num_computed_tokens + self.num_scheduled_tokens

    @property
    def token_ids(self) -> list[int]:
        """What is computed."""
        sequence = self.sequence
        own = sequence.token_ids[sequence.num_computed_tokens : self.end]
        return own + self.draft_token_ids

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's end, so that a token is sampled."""
        return self.end == self.sequence.num_tokens

    @property
    def num_rows(self) -> int:
        """Rows of logits that are sampled from: the end's, and one behind each draft."""
        return 1 + len(self.draft_token_ids) if self.samples else 0


class SampledToken(msgspec.Struct, frozen=True):
    """The sampler's result for one row of logits; `error` when there is none.

    Attributes:
        forced: the only tokens that the sequence's grammar lets follow. They are not sampled, and
            the next step computes them all.
        is_final: the grammar lets nothing follow these.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    forced: list[int] = []
    is_final: bool = False
