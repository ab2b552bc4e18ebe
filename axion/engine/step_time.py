"""How long the next step will take, learned from those before it."""

from __future__ import annotations

# Share of an error by which one step corrects the prediction.
_RATE = 0.3
# Errors beyond so many usual ones count as that many: a step that was held up teaches little.
_MAX_DEVIATIONS = 4.0
_DEVIATION_RATE = 0.1
# What the usual error is taken to be at first, and at least, as a share of the prediction.
_FIRST_DEVIATION = 0.25
_MIN_DEVIATION = 0.02
# A step is to stay within its limit even if it takes longer by so many usual errors.
_MARGIN = 2.0
# Tokens beside those that decode which are taken to cost a step as much as all else, at first.
_FIRST_GUESS = 256


class StepTimeModel:
    """`seconds = base + per_sequence * num_seqs + per_token * (num_tokens - num_seqs)`.

    Every sequence has one token at least; the tokens beyond are those of prompts. Steps without
    any teach the first two coefficients, the others the third. A step corrects them by a share of
    its error (normalized least mean squares, Widrow and Hoff, 1960), each in proportion to its
    part of the prediction. So they stay positive and need no scale, and what changes slowly, such
    as the length of the contexts, is followed.
    """

    def __init__(self) -> None:
        self._base = self._per_sequence = self._per_token = 0.0  # before the first step
        self._deviation = _FIRST_DEVIATION
        self._most_tokens = 0  # beyond one a sequence, in one step

    def observe(self, num_seqs: int, num_tokens: int, seconds: float) -> None:
        """Learn from one step."""
        num_more = num_tokens - num_seqs
        self._most_tokens = max(self._most_tokens, num_more)
        if not self._base:
            self._base = seconds / 2
            self._per_sequence = seconds / 2 / num_seqs
            self._per_token = seconds / (_FIRST_GUESS + num_more)
            return
        of_sequences = self._per_sequence * num_seqs
        predicted = self._base + of_sequences + self._per_token * num_more
        most = _MAX_DEVIATIONS * self._deviation
        error = min(max(seconds / predicted - 1, -most), most)
        if num_more:
            self._per_token *= 1 + _RATE * error
        else:
            squares = self._base**2 + of_sequences**2
            self._base *= 1 + _RATE * error * predicted * self._base / squares
            self._per_sequence *= 1 + _RATE * error * predicted * of_sequences / squares
        self._deviation += _DEVIATION_RATE * (abs(error) - self._deviation)
        self._deviation = max(self._deviation, _MIN_DEVIATION)

    def num_tokens_within(self, seconds: float, num_seqs: int) -> int:
        """Tokens of a step of `num_seqs` sequences that will most likely not take longer.

        At most twice as many prompt tokens as any step has had: further nothing is known. Less
        than `num_seqs` where even one token of each takes longer.
        """
        if not self._base:
            return num_seqs
        left = seconds / (1 + _MARGIN * self._deviation)
        left -= self._base + self._per_sequence * num_seqs
        return num_seqs + min(int(left / self._per_token), 2 * self._most_tokens)
