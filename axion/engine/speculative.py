"""Tokens that are guessed ahead of the model, so that one step computes and checks several.

A proposer guesses how a sequence goes on. The step computes the guessed tokens, the drafts, behind
the sequence's own, and the sampler gives every row the token that it would have given without
them: the n-th token's draw, penalties and grammar follow from what is before it alone. So a row
counts if all drafts before it came out as guessed, and the tokens are those that would have come
one a step, greedy or sampled. Nothing about the distribution has to be argued.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from axion.engine.sequence import Sequence
from axion.engine.step import SampledToken, ScheduledSequence

# Not nothing, also where a step takes no longer for them: drafts are never all wrong for free.
_LEAST_PRICE = 0.05
# Weight of what is new in the moving average: times are noisy.
_PRICE_RATE = 0.1


class Proposer(Protocol):
    """Guesses how sequences go on."""

    def propose(self, scheduled: list[ScheduledSequence], limits: list[int]) -> list[list[int]]:
        """Drafts for each sequence of a step, at most as many as `limits` says.

        Their blocks are reserved; what the step computes besides is not in the KV cache yet.
        """
        ...


class Price:
    """What drafts cost, measured: the tokens that the time which a step takes longer for one
    sequence's drafts would have been enough for."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # seconds of a step, by its number of sequences
        self._extra: dict[int, float] = {}  # seconds more for each that has drafts

    def book(self, scheduled: list[ScheduledSequence], seconds: float) -> None:
        """Learn from the time that a step took, drafting included."""
        if any(entry.num_scheduled_tokens > 1 for entry in scheduled):
            return  # a prompt's length says more than the drafts
        num_seqs = len(scheduled)
        plain = self._plain.get(num_seqs)
        if num_drafting := sum(1 for entry in scheduled if entry.draft_token_ids):
            if plain is not None:
                _follow(self._extra, num_seqs, (min(seconds, 8 * plain) - plain) / num_drafting)
        else:
            _follow(self._plain, num_seqs, min(seconds, 2 * (plain or seconds)))

    def of(self, num_seqs: int) -> float:
        """The price in a step of so many sequences, in tokens."""
        plain = self._plain.get(num_seqs)
        if plain is None:
            return _LEAST_PRICE
        return max(_LEAST_PRICE, num_seqs * self._extra.get(num_seqs, 0.0) / plain)


def _follow(averages: dict[int, float], key: int, value: float) -> None:
    known = averages.get(key, value)
    averages[key] = known + _PRICE_RATE * (value - known)


class NgramProposer:
    """Prompt lookup: what followed the sequence's last tokens where they stood before.

    Pays where the answer repeats its prompt or itself. Source: Yang et al., "Inference with
    Reference", arXiv:2304.04487.
    """

    def propose(self, scheduled: list[ScheduledSequence], limits: list[int]) -> list[list[int]]:
        drafts: list[list[int]] = []
        for entry, limit in zip(scheduled, limits, strict=True):
            sequence = entry.sequence
            if limit:
                drafts.append(sequence.ngrams.find(sequence.token_ids, limit))
                continue
            if not entry.samples:  # piece by piece: a long prompt takes a while
                sequence.ngrams.extend(sequence.token_ids, entry.end)
            drafts.append([])
        return drafts


def verify(
    entry: ScheduledSequence,
    rows: list[SampledToken],
    advance: Callable[[Sequence, SampledToken], SampledToken],
) -> list[SampledToken]:
    """What the sequence goes on with: the rows before which everything came out as drafted.

    Args:
        rows: the sampled tokens of the sequence's last own row and of its drafts.
        advance: books a token with the sequence's grammar, which may add forced ones.

    Returns:
        The tokens in order; none where drafts may be what made the first row unusable.
    """
    drafts = entry.draft_token_ids
    accepted: list[SampledToken] = []
    row = 0
    while row < len(rows):
        if rows[row].error is not None and drafts:
            break  # the next step computes this row without drafts behind it
        token = advance(entry.sequence, rows[row])
        accepted.append(token)
        token_ids = [token.token_id, *token.forced]
        is_last = token.is_final or token.error is not None
        if is_last or drafts[row : row + len(token_ids)] != token_ids:
            break
        row += len(token_ids)
    return accepted
