"""What a client has of an answer that another engine began, set against what is read of it here."""

from __future__ import annotations

from collections.abc import Iterable

from axion.openai.delivered import DeliveredChoice
from axion.text.events import ArgumentsDelta, CallStart, Event, ReasoningDelta, TextDelta, append


class Debt:
    """What the client has already, although the parsers here have not told it yet.

    Another engine may have sent what these hold back: the beginning of a stop string or of a tag,
    a number that may go on. When it is told at last, it is dropped.

    Args:
        choice: what the client has.
        told: what the parsers make of the same answer so far.
        num_held: characters of it that they hold back.

    Attributes:
        first: of the arguments of calls, what they tell beyond what the client has: some formats
            show sooner what comes next.

    Raises:
        ValueError: the two are not the beginning of one answer.
    """

    def __init__(self, choice: DeliveredChoice, told: Iterable[Event], num_held: int) -> None:
        texts = {"reasoning": "", "content": ""}
        calls: list[tuple[str, str]] = []
        for event in told:
            match event:
                case ReasoningDelta(text):
                    texts["reasoning"] += text
                case TextDelta(text):
                    texts["content"] += text
                case CallStart(_, _, name):
                    calls.append((name, ""))
                case ArgumentsDelta(i, text):
                    name, arguments = calls[i]
                    calls[i] = name, arguments + text
        if [name for name, _ in calls] != [call.name for call in choice.calls[: len(calls)]]:
            raise ValueError("the calls are others")
        self._num_calls = len(choice.calls)
        self.first: list[Event] = []
        reasoning, self._reasoning = _compare(choice.reasoning, texts["reasoning"])
        content, self._content = _compare(choice.content, texts["content"])
        if reasoning.strip() or content.strip():
            raise ValueError("a part of the format is taken for text")
        if len(self._reasoning.strip()) + len(self._content.strip()) > num_held:
            raise ValueError("a part of the text is lost")
        self._arguments = [call.arguments for call in choice.calls]
        for i, (_, arguments) in enumerate(calls):
            more, self._arguments[i] = _compare(choice.calls[i].arguments, arguments)
            if more:
                self.first.append(ArgumentsDelta(i, more))

    def settle(self, events: list[Event]) -> list[Event]:
        """The events without what the client has."""
        new: list[Event] = []
        for event in events:
            match event:
                case ReasoningDelta(text):
                    text, self._reasoning = _without(text, self._reasoning)
                    event = ReasoningDelta(text)
                case TextDelta(text):
                    text, self._content = _without(text, self._content)
                    event = TextDelta(text)
                case ArgumentsDelta(i, text) if i < self._num_calls:
                    text, self._arguments[i] = _without(text, self._arguments[i])
                    event = ArgumentsDelta(i, text)
                case CallStart(i) if i < self._num_calls:
                    continue
            if not (isinstance(event, ReasoningDelta | TextDelta | ArgumentsDelta)) or event.text:
                append(new, event)
        return new


def _compare(delivered: str, told: str) -> tuple[str, str]:
    """What is told beyond what is delivered, and the reverse; white space may differ.

    Raises:
        ValueError: neither begins with the other.
    """
    i = j = 0
    while i < len(delivered) and j < len(told):
        if delivered[i] == told[j]:
            i, j = i + 1, j + 1
        elif delivered[i].isspace():
            i += 1
        elif told[j].isspace():
            j += 1
        else:
            raise ValueError("the texts are others")
    return told[j:], delivered[i:]


def _without(text: str, owed: str) -> tuple[str, str]:
    """The text without what is owed, and what is owed still; nothing if the two differ."""
    try:
        return _compare(owed, text)
    except ValueError:
        return text, ""
