"""Ends an answer at a stop string where the server that gives it would not, or not rightly."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from axion.text.stop import StopStrings

TokensT = TypeVar("TokensT")


class StopCut(Generic[TokensT]):
    """One choice's text on its way to a client, up to the first stop string in it.

    What may become a stop string is held back, and with it what is told of its tokens. At the end
    the tokens that lie behind the beginning of the stop string are dropped.

    Args:
        stop: the stop strings.
        include: the stop string itself is part of the text.
    """

    def __init__(self, stop: tuple[str, ...], include: bool) -> None:
        self._strings = StopStrings(stop, include)
        self._num_chars = 0
        self._num_shown = 0
        self._waiting: deque[tuple[TokensT, int, int]] = deque()  # begin and end of their text

    def push(
        self, text: str, tokens: TokensT | None, *, may_stop: bool = True
    ) -> tuple[str, list[TokensT], str | None]:
        """Add a chunk's text and what is told of its tokens.

        Args:
            may_stop: a stop string counts already.

        Returns:
            What can be shown now, of whose tokens, and the stop string that ends it, if any.
        """
        begin = self._num_chars
        self._num_chars += len(text)
        if tokens is not None:
            self._waiting.append((tokens, begin, self._num_chars))
        shown, stop = self._strings.push(text) if may_stop else (text, None)
        return shown, self._shown_tokens(shown, final=stop is not None), stop

    def flush(self) -> tuple[str, list[TokensT]]:
        """What is still held back when the text ends without a stop string."""
        rest = self._strings.flush()
        return rest, self._shown_tokens(rest, final=True)

    def _shown_tokens(self, shown: str, *, final: bool) -> list[TokensT]:
        self._num_shown += len(shown)
        tokens = []
        while self._waiting:
            told, begin, end = self._waiting[0]
            if end > self._num_shown and not (final and begin < self._num_shown):
                break
            tokens.append(told)
            self._waiting.popleft()
        return tokens
