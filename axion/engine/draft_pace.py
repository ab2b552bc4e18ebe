"""How far to guess ahead of one sequence."""

from __future__ import annotations

MAX_DRAFT_TOKENS = 16
_FIRST_LENGTH = 2
_MAX_PAUSE = 64  # steps
# Weight of what is new in the moving average: a text's kind changes soon.
_GAIN_RATE = 0.25


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
