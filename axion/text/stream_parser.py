"""Parsers of text that comes in pieces.

A parser is written as if all text were there: a generator that reads forwards and is suspended
wherever the text ends for now. So the result cannot depend on how the text was cut, and only
what may still change its meaning is held back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

from axion.text.events import Event, TextDelta, append

T = TypeVar("T")
Steps = Generator[None, None, T]


class MalformedError(Exception):
    """The text is not what it looked like."""


class CutError(MalformedError):
    """The text ended in the middle."""


class AnswerParser(Protocol):
    """Turns the text of an answer into events, whatever pieces it comes in.

    Attributes:
        num_held: characters that are held back, because what they are is not certain yet.
        reasoning: whether the text so far ends inside the model's reasoning.
    """

    @property
    def num_held(self) -> int: ...

    @property
    def reasoning(self) -> bool: ...

    def push(self, text: str) -> list[Event]: ...

    def flush(self) -> list[Event]: ...


class StreamParser(ABC):
    """An `AnswerParser`; a subclass says in `parse` what it reads."""

    def __init__(self) -> None:
        self._text = ""  # what came and is neither sent nor dropped
        self._at = 0  # how far of that is read
        self._final = False
        self._events: list[Event] = []
        self._steps = self.parse()
        next(self._steps, None)

    @property
    def num_held(self) -> int:
        return len(self._text)

    @property
    def reasoning(self) -> bool:
        return False

    def push(self, text: str) -> list[Event]:
        """Add text; returns what is certain now."""
        self._text += text
        return self._resume()

    def flush(self) -> list[Event]:
        """The rest, when the text ends."""
        self._final = True
        return self._resume()

    @abstractmethod
    def parse(self) -> Steps[None]:
        """Read all of the text."""

    def _resume(self) -> list[Event]:
        next(self._steps, None)
        events, self._events = self._events, []
        return events

    # What `parse` is made of.

    def more(self) -> Steps[bool]:
        """Wait for more text; False if the text ends here."""
        if self._final:
            return False
        yield
        return True

    def peek(self) -> Steps[str]:
        """The next character, empty at the end of the text."""
        while self._at == len(self._text):
            if not (yield from self.more()):
                return ""
        return self._text[self._at]

    def skip_space(self) -> Steps[None]:
        while (yield from self.peek()).isspace():
            self._at += 1

    def accept(self, literal: str) -> Steps[bool]:
        """Read `literal` if it comes next."""
        while len(self._text) - self._at < len(literal):
            if not literal.startswith(self._text[self._at :]) or not (yield from self.more()):
                return False
        if not self._text.startswith(literal, self._at):
            return False
        self._at += len(literal)
        return True

    def expect(self, *literals: str) -> Steps[str]:
        """Read the first of `literals` that comes next.

        Raises:
            MalformedError: none of them does.
        """
        for literal in literals:
            if (yield from self.accept(literal)):
                return literal
        raise CutError if self._final and not (yield from self.peek()) else MalformedError

    def optional(self, literal: str) -> Steps[None]:
        """Drop `literal`, and white space before it, if it comes next: a beginning at the end."""
        start = self._at
        yield from self.skip_space()
        if (yield from self.accept(literal)):
            self.drop()
        elif self._final and literal.startswith(self._text[self._at :]):
            self._at = len(self._text)
            self.drop()
        else:
            self._at = start

    def until(self, *ends: str) -> Steps[tuple[str, str]]:
        """Read up to the first of `ends`; returns the text before it and the end itself.

        Raises:
            CutError: the text ends before.
        """
        start = searched = self._at
        while True:
            at, end = _first(self._text, ends, searched)
            if end:
                self._at = at + len(end)
                return self._text[start:at], end
            searched = max(start, len(self._text) - max(map(len, ends)) + 1)
            if not (yield from self.more()):
                raise CutError

    def send_until(self, send: Callable[[str], None], *ends: str) -> Steps[str]:
        """Send what comes before the first of `ends` as it comes; returns that end.

        Raises:
            CutError: the text ends before; all of it is sent.
        """
        while True:
            at, end = _first(self._text, ends, self._at)
            if not end:
                at = len(self._text) - num_begun(self._text, ends, self._at)
            send(self._text[self._at : at])
            self._at = at + len(end)
            self.drop()
            if end:
                return end
            if not (yield from self.more()):
                send(self._text)
                self._at = len(self._text)
                self.drop()
                raise CutError

    def drop(self) -> None:
        """What is read needs no second look."""
        self._text = self._text[self._at :]
        self._at = 0

    def emit(self, event: Event) -> None:
        append(self._events, event)

    def send_text(self, text: str) -> None:
        if text:
            self.emit(TextDelta(text))


class Chain:
    """An `AnswerParser` whose second part parses the text that the first one leaves."""

    def __init__(self, first: AnswerParser, second: AnswerParser) -> None:
        self._first = first
        self._second = second

    @property
    def num_held(self) -> int:
        return self._first.num_held + self._second.num_held

    @property
    def reasoning(self) -> bool:
        return self._first.reasoning

    def push(self, text: str) -> list[Event]:
        return self._pass_on(self._first.push(text))

    def flush(self) -> list[Event]:
        return self._pass_on(self._first.flush()) + self._second.flush()

    def _pass_on(self, events: list[Event]) -> list[Event]:
        passed: list[Event] = []
        for event in events:
            passed += self._second.push(event.text) if isinstance(event, TextDelta) else [event]
        return passed


def _first(text: str, ends: tuple[str, ...], start: int) -> tuple[int, str]:
    """Where the first of `ends` is, and which; of two at one place, the longer one."""
    found = [(at, -len(end), end) for end in ends if (at := text.find(end, start)) >= 0]
    at, _, end = min(found, default=(-1, 0, ""))
    return at, end


def num_begun(text: str, ends: tuple[str, ...], start: int = 0) -> int:
    """Characters at the end of `text` that may be the beginning of one of `ends`."""
    longest = min(max(map(len, ends), default=1) - 1, len(text) - start)
    for length in range(longest, 0, -1):
        if any(end.startswith(text[-length:]) for end in ends):
            return length
    return 0
