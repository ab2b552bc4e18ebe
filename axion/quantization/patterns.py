"""Patterns for names of layers, which stand in a checkpoint's config and may be anybody's."""

from __future__ import annotations

import regex

from axion.errors import ModelLoadError

# Longer than any honest one takes by far.
_TIMEOUT_S = 0.2


def matches(pattern: str, name: str) -> bool:
    """Whether `name` begins as `pattern` says.

    Raises:
        ModelLoadError: it is no pattern, or takes too long.
    """
    try:
        return regex.match(pattern, name, timeout=_TIMEOUT_S) is not None
    except TimeoutError:
        raise ModelLoadError(f"config.json: the pattern {pattern!r:.80} takes too long.") from None
    except regex.error as error:
        raise ModelLoadError(f"config.json: {pattern!r:.80} is no pattern: {error}.") from None
