"""Generates the conversations that the demo model learns from and is tested on.

Every skill is a generator of exchanges. `conversation` strings exchanges together for training;
`held_out_case` makes one test question. The two never share phrasings, number pairs, words, names
or places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from axion.demo.skills import (
    arithmetic,
    facts,
    letters,
    limits,
    memory,
    small_talk,
    structured,
    tool_use,
    tools,
)
from axion.demo.skills.base import Exchange, Message, Split, Tool

Generator = Callable[[Random, Split], Exchange]

SKILLS: dict[str, Generator] = {
    "greet": small_talk.greet,
    "about": facts.about,
    "limits": limits.limits,
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
    "greet": 6,
    "about": 7,
    "limits": 7,
    "add": 13,
    "subtract": 20,
    "count": 6,
    "spell": 3,
    "reverse": 5,
    "json": 9,
    "tool_call": 14,
    "tool_result": 7,
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

_TOOL_SKILLS = ("tool_call", "tool_result")
_PLAIN = {skill: share for skill, share in SHARES.items() if skill not in _TOOL_SKILLS}


@dataclass
class Conversation:
    """Messages and the tools that go with them."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)


def conversation(rng: Random, split: Split = "train") -> Conversation:
    """A conversation of one or more exchanges, sometimes with a system message."""
    first = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
    if first in _TOOL_SKILLS:
        offer = tools.random_offer(rng, split)
        turns = rng.choices((1, 2, 3), weights=(65, 25, 10))[0]
    else:
        offer = ()
        turns = rng.choices((1, 2, 3, 5), weights=(50, 25, 15, 10))[0]
    messages = _system(rng)
    offered: list[Tool] = []
    for turn in range(turns):
        exchange = _exchange(rng, split, first if turn == 0 else None, offer)
        messages += [*exchange.messages, exchange.answer]
        offered = exchange.tools or offered
    return Conversation(messages, offered)


def conversations(rng: Random, split: Split = "train") -> Iterator[Conversation]:
    """Conversations without end."""
    while True:
        yield conversation(rng, split)


def held_out_case(rng: Random, skill: str) -> Exchange:
    """A test question of a skill, now and then after a system message or another exchange."""
    offer = tools.random_offer(rng, "held_out") if skill in _TOOL_SKILLS else ()
    exchange = _exchange(rng, "held_out", skill, offer)
    before = _system(rng)
    if rng.random() < 0.25:
        earlier = _exchange(rng, "held_out", None, offer)
        before += [*earlier.messages, earlier.answer]
    return Exchange([*before, *exchange.messages], exchange.answer, exchange.check, exchange.tools)


def _system(rng: Random) -> list[Message]:
    if rng.random() < 0.5:
        return []
    role = "developer" if rng.random() < 0.1 else "system"
    return [{"role": role, "content": rng.choice(SYSTEM_MESSAGES)}]


def _exchange(rng: Random, split: Split, skill: str | None, offer: tools.Offer) -> Exchange:
    """An exchange of the skill, or of any that goes with the tools on offer.

    A call whose result is never told would leave a conversation hanging, so unless it is asked
    for, a call comes with its result.
    """
    if skill is None:
        skill = "tool_result" if offer else rng.choices(list(_PLAIN), list(_PLAIN.values()))[0]
        if offer and rng.random() < 0.5:
            skill = rng.choice(("greet", "about"))
    if skill == "tool_call":
        return tool_use.tool_call(rng, split, offer)
    if skill == "tool_result":
        return tool_use.tool_result(rng, split, offer)
    return SKILLS[skill](rng, split)
