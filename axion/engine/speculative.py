"""Tokens that are guessed ahead of the model, so that one step computes and checks several.

A proposer guesses how a sequence goes on. The step computes the guessed tokens, the drafts, behind
the sequence's own, and the sampler gives every row the token that it would have given without
them: the n-th token's draw, penalties and grammar follow from what is before it alone. So a row
counts if all drafts before it came out as guessed, and the tokens are those that would have come
one a step, greedy or sampled. Nothing about the distribution has to be argued.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from axion.engine.scheduler import SampledToken, ScheduledSequence
    from axion.engine.sequence import Sequence

MAX_DRAFT_TOKENS = 16
_FIRST_LENGTH = 2
_MAX_PAUSE = 64  # steps
# Not nothing, also where a step takes no longer for them: drafts are never all wrong for free.
_LEAST_PRICE = 0.05
# Weights of what is new in the moving averages: times are noisy, and a text's kind changes soon.
_PRICE_RATE = 0.1
_GAIN_RATE = 0.25
# Of the places where the last two tokens stood before, so many are looked at, the latest first.
_MAX_CANDIDATES = 8
_MAX_MATCH = 16


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


class Pace:
    """How many tokens are drafted for a sequence: more while they come true, none for a while when
    they do not bring in what they cost."""

    __slots__ = ("_gain", "_length", "_num_losses", "_pause")

    def __init__(self) -> None:
        self._length = _FIRST_LENGTH
        self._gain = 1.0  # tokens that drafts bring in a step, a moving average
        self._num_losses = 0
        self._pause = 0

    def limit(self) -> int:
        """Most drafts of the next step; to be asked once a step."""
        if self._pause:
            self._pause -= 1
            return 0
        return self._length

    def book(self, num_drafted: int, num_accepted: int, price: float) -> None:
        """Learn from a step's drafts."""
        if num_accepted == num_drafted:
            self._length = min(2 * self._length, MAX_DRAFT_TOKENS)
        else:
            self._length = num_accepted + 1
        self._gain += _GAIN_RATE * (num_accepted - self._gain)
        if self._gain >= price:
            self._num_losses = max(0, self._num_losses - num_accepted)
        else:
            self.rest(min(2**self._num_losses, _MAX_PAUSE))
            self._num_losses += 1
            # The first drafts after the rest decide whether it goes on.
            self._gain, self._length = price, _FIRST_LENGTH

    def rest(self, num_steps: int = 1) -> None:
        """Draft nothing in the next steps."""
        self._pause = num_steps


class NgramIndex:
    """Where each pair of neighbouring tokens of a growing sequence stood, the latest place first.

    A chain of earlier places for each pair, as compressors keep it (RFC 1951, section 4).
    """

    __slots__ = ("_earlier", "_latest")

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], int] = {}
        self._earlier = [-1]  # of the pair that ends at each position

    def extend(self, token_ids: list[int], end: int) -> None:
        """Take in the pairs that end before position `end`."""
        latest, earlier = self._latest, self._earlier
        for position in range(len(earlier), end):
            pair = token_ids[position - 1], token_ids[position]
            earlier.append(latest.get(pair, -1))
            latest[pair] = position

    def find(self, token_ids: list[int], limit: int) -> list[int]:
        """What followed where most of the last tokens stood before; empty if they never did."""
        last = len(token_ids) - 1
        if last < 1:
            return []
        self.extend(token_ids, last)
        position = self._latest.get((token_ids[last - 1], token_ids[last]), -1)
        best, longest = -1, 0
        for _ in range(_MAX_CANDIDATES):
            if position < 0:
                break
            length = 2
            while (
                length < min(_MAX_MATCH, position + 1)
                and token_ids[position - length] == token_ids[last - length]
            ):
                length += 1
            if length > longest:
                best, longest = position, length
            position = self._earlier[position]
        if best < 0:
            return []
        drafts = token_ids[best + 1 : best + 1 + limit]
        # What repeats with a short period goes on into the drafts themselves.
        for i in range(limit - len(drafts)):
            drafts.append(drafts[i])
        return drafts


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
