"""Names of layers, and patterns for them, in a checkpoint's config, which may be anybody's."""

from __future__ import annotations

from collections.abc import Iterator

import regex

from axion.errors import ModelLoadError

# Longer than any honest one takes by far.
_TIMEOUT_S = 0.2
# What is before the layers of a text model, by itself or in one that sees.
_PARENTS = ("model.", "model.language_model.", "language_model.model.", "language_model.", "")
_IN_TEXT_MODEL = regex.compile(r"(?:^|\.)(layers\..+|lm_head)$")


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


def known_as(name: str) -> Iterator[str]:
    """A layer's stored name, and then the others that a config may have for it.

    Where the text model is a part of one that sees, configs have the names that the modules had
    when it was quantized, and those are not always what it was saved under.
    """
    yield name
    if found := _IN_TEXT_MODEL.search(name):
        yield from (f"{parent}{found[1]}" for parent in _PARENTS)
