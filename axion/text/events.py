"""What an answer is made of, in the order in which it comes."""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class TextDelta(msgspec.Struct, frozen=True):
    """Text for the reader."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    """Text that the model thinks before it answers."""

    text: str


class CallStart(msgspec.Struct, frozen=True):
    """A function that the model wants called; its arguments follow.

    Attributes:
        index: counts the calls of an answer.
    """

    index: int
    id: str
    name: str


class ArgumentsDelta(msgspec.Struct, frozen=True):
    """A piece of a call's arguments. All pieces together are the text of a JSON object."""

    index: int
    text: str


class CallEnd(msgspec.Struct, frozen=True):
    """The arguments of a call are whole, or will not become so."""

    index: int


Event: TypeAlias = TextDelta | ReasoningDelta | CallStart | ArgumentsDelta | CallEnd


def append(events: list[Event], event: Event) -> None:
    """Add an event; one that goes on with the last one is joined to it."""
    match event, events[-1] if events else None:
        case TextDelta(text), TextDelta(before):
            events[-1] = TextDelta(before + text)
        case ReasoningDelta(text), ReasoningDelta(before):
            events[-1] = ReasoningDelta(before + text)
        case ArgumentsDelta(index, text), ArgumentsDelta(same, before) if index == same:
            events[-1] = ArgumentsDelta(index, before + text)
        case _:
            events.append(event)
