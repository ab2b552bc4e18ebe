"""Stop strings in streamed text."""

from __future__ import annotations


class StopStrings:
    """Ends a text at the first stop string that is complete in it.

    If several are complete at the same character, the longest counts. The result does not
    depend on how the text is cut into pieces: every stop string is followed character by
    character (Knuth, Morris and Pratt, 1977), and as much text is held back as the longest one
    that is under way, at most one character less than the longest stop string.

    Args:
        stop: the stop strings, none of them empty.
        include: the stop string itself is part of the text.
    """

    def __init__(self, stop: tuple[str, ...], include: bool = False) -> None:
        self._stop = sorted(stop, key=len, reverse=True)
        self._fallback = [_prefix_function(string) for string in self._stop]
        self._progress = [0] * len(stop)
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Add text; returns what can be shown now and the stop string that was met, if any.

        After a stop string the text is over: what follows it in `text` is dropped, and the
        caller pushes nothing more.
        """
        if not self._stop:
            return text, None
        pending = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            stop = self._advance(char)
            if stop is not None:
                self._held = ""
                return pending[: end if self._include else end - len(stop)], stop
        certain = len(pending) - max(self._progress)
        self._held = pending[certain:]
        return pending[:certain], None

    def flush(self) -> str:
        """What is still held back when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> str | None:
        for i, (string, fallback) in enumerate(zip(self._stop, self._fallback, strict=True)):
            matched = self._progress[i]
            while matched and string[matched] != char:
                matched = fallback[matched - 1]
            if string[matched] == char:
                matched += 1
            if matched == len(string):
                return string
            self._progress[i] = matched
        return None


def _prefix_function(string: str) -> list[int]:
    """For each prefix of `string`, the length of its longest border."""
    borders = [0] * len(string)
    for i in range(1, len(string)):
        border = borders[i - 1]
        while border and string[border] != string[i]:
            border = borders[border - 1]
        borders[i] = border + (string[border] == string[i])
    return borders
