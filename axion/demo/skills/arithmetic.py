"""Adding, subtracting and counting."""

from __future__ import annotations

import re
from random import Random

from axion.demo.skills.base import (
    Exchange,
    Split,
    assistant,
    draw,
    is_held_out,
    phrasings,
    says_number,
    spoken,
    user,
)
from axion.demo.words import words_of

ADD = phrasings(
    train="""
        What is {a} + {b}? | What is {a} plus {b}? | {a} + {b} | {a}+{b} | {a} + {b} = ? |
        {a} plus {b} | Add {a} and {b}. | Add {a} to {b}. | How much is {a} + {b}? |
        How much is {a} plus {b}? | What is the sum of {a} and {b}? |
        Give me the sum of {a} and {b}. | Calculate {a} + {b}. | Calculate {a} plus {b}. |
        Compute {a} + {b}. | Can you add {a} and {b}? | What do I get when I add {a} and {b}? |
        Tell me {a} plus {b}. | I have {a} apples and get {b} more. How many do I have? |
        What's {a} + {b}? | What's {a} plus {b}? | Sum {a} and {b}. | What is {a}+{b}? |
        {a}+{b}= | {a} + {b} = | Could you add {a} and {b}? | What do {a} and {b} add up to? |
        Tell me what {a} + {b} is. | Could you calculate {a} + {b}? |
        Please tell me how much {a} plus {b} is. | How much do {a} and {b} make together? |
        Can you tell me what {a} plus {b} makes? | Compute the sum of {a} and {b}.
    """,
    held_out="""
        Tell me the sum of {a} and {b}. | What do you get when you add {a} to {b}? |
        Can you compute {a} + {b}? | How much do {a} and {b} add up to? |
        Could you tell me what {a} plus {b} is?
    """,
)

SUBTRACT = phrasings(
    train="""
        What is {a} - {b}? | What is {a} minus {b}? | {a} - {b} | {a}-{b} | {a} - {b} = ? |
        {a} minus {b} | Subtract {b} from {a}. | Take {b} away from {a}. | Take {b} from {a}. |
        How much is {a} - {b}? | How much is {a} minus {b}? | Calculate {a} - {b}. |
        Calculate {a} minus {b}. | Compute {a} - {b}. | Can you subtract {b} from {a}? |
        What do I get when I subtract {b} from {a}? | Tell me {a} minus {b}. |
        I have {a} apples and give away {b}. How many are left? | What's {a} - {b}? |
        What's {a} minus {b}? | What is {a} take away {b}? | What is {a}-{b}? | {a}-{b}= |
        {a} - {b} = | Could you subtract {b} from {a}? |
        What is left of {a} when I take {b} away? | Tell me what {a} - {b} is. |
        Could you calculate {a} - {b}? | Please tell me how much {a} minus {b} is. |
        Can you take {b} away from {a}? | Can you tell me what {a} minus {b} makes?
    """,
    held_out="""
        What do you get when you take {b} away from {a}? | Can you compute {a} - {b}? |
        Can you tell me {a} minus {b}? | What is left when I subtract {b} from {a}? |
        Could you tell me what {a} minus {b} is?
    """,
)

COUNT = phrasings(
    train="""
        Count from {a} to {b}. | Count from {a} up to {b}. | Can you count from {a} to {b}? |
        List the numbers from {a} to {b}. | Write the numbers from {a} to {b}. |
        Start at {a} and count to {b}. | Give me the numbers from {a} to {b}. |
        Say the numbers {a} to {b}. | Count {a} to {b}. |
        Could you list the numbers from {a} to {b}? | Count up from {a} to {b}. |
        Tell me all numbers from {a} to {b}. | Could you write the numbers from {a} to {b}?
    """,
    held_out="""
        Start from {a} and count up to {b}. | Tell me the numbers from {a} to {b}. |
        Can you list the numbers from {a} to {b}? | Could you count from {a} to {b}?
    """,
)

COUNT_DOWN = phrasings(
    train="""
        Count down from {a} to {b}. | Count from {a} down to {b}. |
        Count backwards from {a} to {b}. | Can you count down from {a} to {b}? |
        Start at {a} and count down to {b}. | List the numbers from {a} down to {b}. |
        Count from {a} to {b}. | Could you list the numbers from {a} down to {b}? |
        Could you count from {a} down to {b}? | Give me the numbers from {a} down to {b}.
    """,
    held_out="""
        Start from {a} and count down to {b}. | Write the numbers from {a} down to {b}. |
        Can you count backwards from {a} to {b}? | Could you count down from {a} to {b}?
    """,
)

COUNT_TO = phrasings(
    train="""
        Count to {b}. | Can you count to {b}? | Count up to {b}. | Could you count up to {b}? |
        Count from one to {b}.
    """,
    held_out="""
        Can you count up to {b}? | Could you count to {b}?
    """,
)

NUMBER_WORDS = words_of("zero one two three four five six seven eight nine ten eleven twelve")

_STEP_WORDS = {2: "twos", 5: "fives", 10: "tens"}


def add(rng: Random, split: Split) -> Exchange:
    """The sum of two numbers from 0 to 99."""
    a, b = number_pair(rng, split, "+")
    text = ADD.pick(rng, split).format(**_written(rng, a=a, b=b))
    answer = assistant(f"{a} + {b} = {a + b}")
    return Exchange([user(spoken(rng, text))], answer, says_number(a + b))


def subtract(rng: Random, split: Split) -> Exchange:
    """The difference of two numbers from 0 to 99, which may be negative."""
    a, b = number_pair(rng, split, "-")
    if a < b and rng.random() < 0.4 and is_held_out(f"{a} - {b}") == is_held_out(f"{b} - {a}"):
        a, b = b, a  # people take the smaller from the larger more often
    text = SUBTRACT.pick(rng, split).format(**_written(rng, a=a, b=b))
    answer = assistant(f"{a} - {b} = {a - b}")
    return Exchange([user(spoken(rng, text))], answer, says_number(a - b))


def count(rng: Random, split: Split) -> Exchange:
    """The numbers from one to another: up, down, or up in steps."""
    start, stop, step = draw(rng, split, _random_range)
    if step < 0:
        text = COUNT_DOWN.pick(rng, split).format(**_written(rng, a=start, b=stop))
    elif step == 1 and start == 1 and rng.random() < 0.8:
        text = COUNT_TO.pick(rng, split).format(**_written(rng, b=stop))
    else:
        text = COUNT.pick(rng, split).format(**_written(rng, a=start, b=stop))
    if step > 1:
        text = f"{text[:-1]} by {_STEP_WORDS[step]}{text[-1]}"
    numbers = [str(n) for n in range(start, stop + (1 if step > 0 else -1), step)]
    return Exchange(
        [user(spoken(rng, text))],
        assistant(", ".join(numbers)),
        lambda answer: re.findall(r"-?\d+", answer) == numbers,
    )


def number_pair(rng: Random, split: Split, sign: str) -> tuple[int, int]:
    """Two numbers whose pair, under this sign, belongs to the split."""

    def expression(rng: Random) -> str:
        top_a, top_b = rng.choice(((99, 99), (99, 99), (99, 99), (20, 20), (99, 9), (9, 9)))
        return f"{rng.randint(0, top_a)} {sign} {rng.randint(0, top_b)}"

    a, _, b = draw(rng, split, expression).split()
    return int(a), int(b)


def _written(rng: Random, **numbers: int) -> dict[str, str]:
    """The numbers as digits or, when all are small, now and then as words."""
    if max(numbers.values()) < len(NUMBER_WORDS) and rng.random() < 0.2:
        return {name: NUMBER_WORDS[number] for name, number in numbers.items()}
    return {name: str(number) for name, number in numbers.items()}


def _random_range(rng: Random) -> tuple[int, int, int]:
    """First number, last number and step of a range of 3 to 20 numbers within 0 to 99."""
    step = rng.choice((1, 1, 1, 1, -1, -1, 2, 2, 5, 5, 10))
    longest = 8 if step > 1 else 12
    if step == 1 and rng.random() < 0.2:
        longest = 20
    length = rng.randint(3, longest)
    span = (length - 1) * step
    lowest, highest = max(0, -span), min(99, 99 - span)
    if step == 1 and rng.random() < 0.3:
        start = 1
    elif step > 1 and rng.random() < 0.6:
        start = step if rng.random() < 0.7 else 0
    else:
        start = rng.randint(lowest, min(highest, 20) if rng.random() < 0.5 else highest)
    return start, start + span, step
