"""What every skill is made of: exchanges, phrasings, and the line between training and test."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, TypeVar

Split = Literal["train", "held_out"]
Message = dict[str, Any]
Tool = dict[str, Any]
Check = Callable[[str], bool]

T = TypeVar("T")

_HELD_OUT_PERCENT = 15


@dataclass(frozen=True)
class Exchange:
    """One question with its right answer.

    Attributes:
        messages: What comes before the answer; the last one is a user or a tool turn.
        answer: The assistant message that training shows.
        check: Says whether a text, as a model wrote it, is a right answer.
        tools: The tools that the request offers, in OpenAI's format.
    """

    messages: list[Message]
    answer: Message
    check: Check
    tools: list[Tool] = field(default_factory=list)


@dataclass(frozen=True)
class Phrasings:
    """Ways to say one thing, some of which training never sees."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def pick(self, rng: Random, split: Split) -> str:
        """One phrasing of the given split."""
        return rng.choice(self.train if split == "train" else self.held_out)


@dataclass(frozen=True)
class Topic:
    """Questions that all have the same answer."""

    answer: str
    questions: Phrasings


def phrasings(train: str, held_out: str) -> Phrasings:
    """Phrasings from texts that separate them by bars."""
    return Phrasings(between_bars(train), between_bars(held_out))


def topic(answer: str, train: str, held_out: str) -> Topic:
    """A topic from texts that separate its questions by bars."""
    return Topic(answer, phrasings(train, held_out))


def between_bars(text: str) -> tuple[str, ...]:
    """The parts of a text that bars separate."""
    return tuple(part.strip() for part in text.split("|"))


def is_held_out(key: str) -> bool:
    """Whether training must never see this number pair, word, name or place."""
    return zlib.crc32(key.encode()) % 100 < _HELD_OUT_PERCENT


def draw(rng: Random, split: Split, make: Callable[[Random], T]) -> T:
    """What `make` returns, tried until its text form belongs to the split."""
    while True:
        item = make(rng)
        if is_held_out(str(item)) == (split == "held_out"):
            return item


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """An assistant message."""
    return {"role": "assistant", "content": text}


def spoken(rng: Random, text: str, polite: bool = True) -> str:
    """The text as different people type it: with and without "please", capitals and marks."""
    style = rng.random() if polite else 1.0
    if style < 0.08:
        text = f"Please {_uncapitalised(text)}" if not text.endswith("?") else text
    elif style < 0.16:
        text = f"{text.rstrip('.')}, please." if not text.endswith("?") else text
    if rng.random() < 0.25:
        text = _uncapitalised(text)
    if rng.random() < 0.25:
        text = text.rstrip(".?!")
    return text


def _uncapitalised(text: str) -> str:
    """The text with a small first letter, unless it begins with an acronym."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def says(expected: str) -> Check:
    """A check for answers that are always the same."""
    return lambda answer: answer.strip() == expected


def says_number(expected: int) -> Check:
    """A check that the last whole number of the answer is the expected one."""
    return lambda answer: re.findall(r"-?\d+", answer)[-1:] == [str(expected)]


def says_json(expected: Any) -> Check:
    """A check that the answer is JSON with the expected value."""

    def check(answer: str) -> bool:
        try:
            return bool(json.loads(answer) == expected)
        except ValueError:
            return False

    return check


def about_topic(
    rng: Random, split: Split, topics: Sequence[Topic], polite: bool = True
) -> Exchange:
    """An exchange about one of the topics."""
    chosen = rng.choice(topics)
    question = spoken(rng, chosen.questions.pick(rng, split), polite)
    if rng.random() < 0.12:
        question = question.lower()
    return Exchange([user(question)], assistant(chosen.answer), says(chosen.answer))


def listed(parts: Sequence[str], last: str = "and") -> str:
    """The parts as a sentence lists them: "a, b and c"."""
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"
