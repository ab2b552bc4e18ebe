"""Follow-up turns that need an earlier turn of the conversation."""

from __future__ import annotations

from random import Random

from axion.demo.skills import arithmetic, facts, small_talk
from axion.demo.skills.base import (
    Exchange,
    Split,
    assistant,
    draw,
    is_held_out,
    phrasings,
    says,
    says_number,
    spoken,
    user,
)
from axion.demo.skills.letters import REVERSE, SPELL, word_for
from axion.demo.words import NAMES, invented_word

REVERSE_IT = phrasings(
    train="""
        Now reverse it. | Reverse it. | And backwards? | Now backwards. | Now reverse that. |
        What is it backwards? | Can you reverse it? | And reversed? | Write it backwards.
    """,
    held_out="""
        Now write it backwards. | Can you reverse that? | And what is it backwards?
    """,
)
SPELL_IT = phrasings(
    train="""
        Now spell it. | Spell it. | How do you spell it? | Now spell the word. |
        Can you spell it? | Spell the word. | And how is it spelled? | Spell that.
    """,
    held_out="""
        Now spell that. | And how do you spell it? | Can you spell that?
    """,
)
ADD_MORE = phrasings(
    train="""
        Now add {b}. | Add {b} to that. | Plus {b}? | And plus {b}? | Add {b} more. |
        Now add {b} to that. | What if I add {b}? | And if I add {b}? | What is that plus {b}? |
        And add {b}. | Now what is it plus {b}? | Plus {b}.
    """,
    held_out="""
        And now add {b}. | Now plus {b}? | What do I get if I add {b}?
    """,
)


def follow_up(rng: Random, split: Split) -> Exchange:
    """A second question that only makes sense after the first one and its answer."""
    return rng.choice((_name, _name, _reverse_it, _spell_it, _add_more))(rng, split)


def _name(rng: Random, split: Split) -> Exchange:
    invented = split == "train" and rng.random() < 0.5
    if invented:
        name = draw(rng, split, invented_word).capitalize()
    else:
        name = draw(rng, split, lambda rng: rng.choice(NAMES))
    messages = [
        user(spoken(rng, small_talk.MY_NAME_IS.pick(rng, split).format(n=name), polite=False)),
        assistant(f"Nice to meet you, {name}!"),
    ]
    if rng.random() < 0.3:
        between = rng.choice((arithmetic.add, arithmetic.count, facts.about))(rng, split)
        messages += [*between.messages, between.answer]
    messages.append(user(spoken(rng, small_talk.WHAT_IS_MY_NAME.pick(rng, split))))
    answer = f"Your name is {name}."
    return Exchange(messages, assistant(answer), says(answer))


def _reverse_it(rng: Random, split: Split) -> Exchange:
    word = word_for(rng, split)
    messages = [
        user(spoken(rng, SPELL.pick(rng, split).format(w=word))),
        assistant("-".join(word)),
        user(spoken(rng, REVERSE_IT.pick(rng, split))),
    ]
    return Exchange(messages, assistant(word[::-1]), says(word[::-1]))


def _spell_it(rng: Random, split: Split) -> Exchange:
    word = word_for(rng, split)
    messages = [
        user(spoken(rng, REVERSE.pick(rng, split).format(w=word))),
        assistant(word[::-1]),
        user(spoken(rng, SPELL_IT.pick(rng, split))),
    ]
    spelled = "-".join(word)
    return Exchange(messages, assistant(spelled), says(spelled))


def _add_more(rng: Random, split: Split) -> Exchange:
    while True:
        first = arithmetic.add(rng, split)
        total = int(str(first.answer["content"]).split("=")[1])
        more = rng.randint(1, 20)
        if total <= 99 and is_held_out(f"{total} + {more}") == (split == "held_out"):
            break
    question = user(spoken(rng, ADD_MORE.pick(rng, split).format(b=more)))
    return Exchange(
        [*first.messages, first.answer, question],
        assistant(f"{total} + {more} = {total + more}"),
        says_number(total + more),
    )
