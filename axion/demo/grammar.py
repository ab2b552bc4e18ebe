"""Generates the conversations that the demo model learns from and is tested on.

Every skill is a generator of exchanges. `conversation` strings exchanges together for training;
`held_out_case` makes one test question. The two never share phrasings, number pairs, words, names
or places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from axion.demo.skills import arithmetic, letters, memory, structured, talk, tool_use
from axion.demo.skills.base import Exchange, Message, Split, Tool

Generator = Callable[[Random, Split], Exchange]

SKILLS: dict[str, Generator] = {
    "greet": talk.greet,
    "about": talk.about,
    "limits": talk.limits,
    "add": arithmetic.add,
    "subtract": arithmetic.subtract,
    "count": arithmetic.count,
    "spell": letters.spell,
    "reverse": letters.reverse,
    "json": structured.json_answer,
    "tool_call": tool_use.tool_call,
    "tool_result": tool_use.tool_result,
    "follow_up": memory.follow_up,
}

# How often training sees each skill. Arithmetic has the most to memorise, small talk the least.
SHARES: dict[str, float] = {
    "greet": 5,
    "about": 6,
    "limits": 7,
    "add": 14,
    "subtract": 16,
    "count": 6,
    "spell": 4,
    "reverse": 6,
    "json": 11,
    "tool_call": 12,
    "tool_result": 8,
    "follow_up": 5,
}

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are helpful.",
    "You are an assistant.",
    "You are a friendly assistant.",
    "You are a very helpful AI assistant.",
    "Answer briefly.",
    "Be brief and friendly.",
    "You are the small demo model that comes with Axion.",
    "You are a chat bot. Answer the user's questions.",
)

_TALK = ("greet", "about", "limits")


@dataclass
class Conversation:
    """Messages and the tools that go with them."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)


def conversation(rng: Random, split: Split = "train") -> Conversation:
    """A conversation of one or more exchanges, sometimes with a system message."""
    names, shares = list(SHARES), list(SHARES.values())
    turns = rng.choices((1, 2, 3, 5), weights=(50, 25, 15, 10))[0]
    first = rng.choices(names, weights=shares)[0]
    exchange = SKILLS[first](rng, split)
    messages = [*_system(rng), *exchange.messages, exchange.answer]
    tools = exchange.tools
    for _ in range(turns - 1):
        # Further tools would not match the ones offered, so after them the rest is talk.
        exchange = _talk(rng, split) if tools else _without_tools(rng, split)
        messages += [*exchange.messages, exchange.answer]
    return Conversation(messages, tools)


def conversations(rng: Random, split: Split = "train") -> Iterator[Conversation]:
    """Conversations without end."""
    while True:
        yield conversation(rng, split)


def held_out_case(rng: Random, skill: str) -> Exchange:
    """A test question of a skill, now and then after a system message or another exchange."""
    exchange = SKILLS[skill](rng, "held_out")
    before = _system(rng)
    if rng.random() < 0.25:
        earlier = _talk(rng, "held_out") if exchange.tools else _without_tools(rng, "held_out")
        before += [*earlier.messages, earlier.answer]
    return Exchange([*before, *exchange.messages], exchange.answer, exchange.check, exchange.tools)


def _system(rng: Random) -> list[Message]:
    if rng.random() < 0.5:
        return []
    role = "developer" if rng.random() < 0.1 else "system"
    return [{"role": role, "content": rng.choice(SYSTEM_MESSAGES)}]


def _talk(rng: Random, split: Split) -> Exchange:
    while True:
        exchange = SKILLS[rng.choice(_TALK)](rng, split)
        if exchange.answer["content"] not in (talk.ONLY_SMALL_NUMBERS, talk.NO_WEATHER):
            return exchange


def _without_tools(rng: Random, split: Split) -> Exchange:
    names = [name for name in SHARES if name not in ("tool_call", "tool_result")]
    return SKILLS[rng.choices(names, weights=[SHARES[name] for name in names])[0]](rng, split)
