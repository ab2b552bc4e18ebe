"""Calling the tools that a request offers, and saying what they returned."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from axion.demo.skills import arithmetic, facts, limits, small_talk
from axion.demo.skills.base import (
    Exchange,
    Message,
    Split,
    assistant,
    draw,
    phrasings,
    says,
    spoken,
    user,
)
from axion.demo.skills.tools import SYMBOLS, Calculator, Offer, Weather, as_number, random_offer
from axion.demo.words import CITIES, invented_word

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"


_SPOKEN_SIGNS = {
    "+": ("+", "plus"),
    "-": ("-", "minus"),
    "*": ("*", "*", "times", "multiplied by", "x"),
    "/": ("/", "divided by"),
}
_VERBS = {
    "+": ("Add {a} and {b}.", "Add {a} to {b}.", "What is the sum of {a} and {b}?"),
    "-": ("Subtract {b} from {a}.", "Take {b} away from {a}."),
    "*": ("Multiply {a} by {b}.", "Multiply {a} and {b}.", "What is the product of {a} and {b}?"),
    "/": ("Divide {a} by {b}.", "Can you divide {a} by {b}?"),
}

CALCULATE = phrasings(
    train="""
        What is {e}? | What's {e}? | {e} | {e} = ? | Calculate {e}. | Compute {e}. |
        How much is {e}? | Can you calculate {e}? | Use the calculator: {e} |
        Use a tool to calculate {e}. | Tell me {e}. | I need {e}. | Please work out {e}. |
        What do you get for {e}? |
        Could you compute {e}? | Please calculate {e} for me. | Tell me what {e} is. |
        Could you tell me the result of {e}? | Use the calculator to find {e}.
    """,
    held_out="""
        Can you compute {e}? | Can you tell me {e}? | What is the result of {e}? |
        Use the calculator to compute {e}. | Could you calculate {e}?
    """,
)

ASK_WEATHER = phrasings(
    train="""
        What is the weather in {c}? | What's the weather in {c}? |
        What is the weather like in {c}? | What's the weather like in {c} today? |
        How is the weather in {c}? | How's the weather in {c} today? |
        Tell me the weather in {c}. | Weather in {c} | Weather in {c}? | Is it raining in {c}? |
        Is it sunny in {c}? | Is it cold in {c}? | How warm is it in {c}? |
        What is the temperature in {c}? | What is the temperature in {c} right now? |
        Do I need a coat in {c}? | Get the weather for {c}. | Look up the weather in {c}. |
        I am in {c}. How is the weather? | I am going to {c}. What is the weather there?
    """,
    held_out="""
        How's the weather in {c}? | Is it warm in {c} today? | How cold is it in {c} right now? |
        Can you tell me the weather in {c}? | Tell me the temperature in {c}. |
        What is the weather in {c} right now?
    """,
)


_SKIES = ("sunny", "cloudy", "rainy", "snowy", "windy", "foggy", "clear", "stormy")


def tool_call(rng: Random, split: Split, offer: Offer = ()) -> Exchange:
    """A request with tools: calls the one that fits, or answers in words when none is needed."""
    offer = offer or random_offer(rng, split)
    tools = [each.tool for each in offer]
    kind = rng.random()
    if kind < 0.12:
        plain = small_talk.greet(rng, split)
    elif kind < 0.2:
        plain = facts.about(rng, split) if kind < 0.15 else limits.off_topic(rng, split)
    elif kind < 0.27 and len(offer) == 1:
        plain = _without_the_tool(rng, split, offer[0])
    else:
        question, call, _ = _question(rng, split, rng.choice(offer))
        return Exchange([question], call, _calls(call), tools)
    return Exchange(plain.messages, plain.answer, plain.check, tools)


def tool_result(rng: Random, split: Split, offer: Offer = ()) -> Exchange:
    """A tool has answered: says the result in a sentence."""
    offer = offer or random_offer(rng, split)
    chosen = rng.choice(offer)
    question, call, subject = _question(rng, split, chosen)
    say = _calculator_result if isinstance(chosen, Calculator) else _weather_result
    result, answer = say(rng, subject)
    reply: Message = {"role": "tool", "content": result}
    if rng.random() < 0.7:
        reply["tool_call_id"] = call["tool_calls"][0]["id"]
    return Exchange(
        [question, call, reply],
        assistant(answer),
        says(answer),
        [each.tool for each in offer],
    )


def call_message(rng: Random, name: str, arguments: dict[str, Any]) -> Message:
    """An assistant message that calls a tool, its arguments an object or JSON text."""
    written: Any = json.dumps(arguments, ensure_ascii=False) if rng.random() < 0.5 else arguments
    function = {"name": name, "arguments": written}
    return {
        "role": "assistant",
        "content": rng.choice((None, "")),
        "tool_calls": [
            {"id": f"call_{rng.randint(0, 9999)}", "type": "function", "function": function}
        ],
    }


def parse_calls(answer: str) -> list[dict[str, Any]] | None:
    """The tool calls an answer consists of, or None when it is not made of whole calls only."""
    calls = []
    rest = answer.strip()
    while rest:
        if not rest.startswith(CALL_OPEN) or CALL_CLOSE not in rest:
            return None
        body, _, rest = rest.removeprefix(CALL_OPEN).partition(CALL_CLOSE)
        try:
            calls.append(json.loads(body))
        except ValueError:
            return None
        rest = rest.strip()
    return calls


def _calls(message: Message) -> Callable[[str], bool]:
    expected = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        expected.append({"name": call["function"]["name"], "arguments": arguments})
    return lambda answer: parse_calls(answer) == expected


def _question(
    rng: Random, split: Split, chosen: Calculator | Weather
) -> tuple[Message, Message, str]:
    """A question for a tool, the right call, and what the question is about."""
    if isinstance(chosen, Calculator):
        return _calculation(rng, split, chosen)
    return _weather_question(rng, split, chosen)


def _without_the_tool(rng: Random, split: Split, offered: Calculator | Weather) -> Exchange:
    """A question for the tool that is not there."""
    if isinstance(offered, Calculator):
        return limits.no_weather(rng, split)
    return rng.choice((arithmetic.add, limits.no_calculator))(rng, split)


def _calculation(rng: Random, split: Split, calculator: Calculator) -> tuple[Message, Message, str]:
    sign = rng.choice((*SYMBOLS, "*"))
    if rng.random() < 0.3:
        a, b = arithmetic.number_pair(rng, split, sign)
        left, right = str(a), str(b)
    else:
        left, right = draw(rng, split, lambda rng: f"{_operand(rng)} {_operand(rng)}").split()
    expression = f"{left} {sign} {right}"
    if not calculator.operations and rng.random() < 0.2:
        more = f"{rng.choice(SYMBOLS)} {_operand(rng)}"
        expression = rng.choice((f"{expression} {more}", f"({expression}) {more}"))
        text = CALCULATE.pick(rng, split).format(e=expression)
    elif rng.random() < 0.25:
        text = rng.choice(_VERBS[sign]).format(a=left, b=right)
    else:
        written = rng.choice(_SPOKEN_SIGNS[sign])
        joined = f"{left} {written} {right}"
        if written in "+-*/" and rng.random() < 0.25:
            joined = f"{left}{written}{right}"
        text = CALCULATE.pick(rng, split).format(e=joined)
    call = call_message(rng, calculator.name, calculator.arguments(expression))
    return user(spoken(rng, text)), call, expression


def _weather_question(rng: Random, split: Split, weather: Weather) -> tuple[Message, Message, str]:
    city = draw(rng, split, lambda rng: rng.choice(CITIES))
    if split == "train" and rng.random() < 0.35:
        city = draw(rng, split, invented_word).capitalize()
    text = ASK_WEATHER.pick(rng, split).format(c=city)
    arguments = {weather.place: city}
    if weather.unit and rng.random() < 0.5:
        scale = rng.choice(("celsius", "fahrenheit"))
        spelled = rng.choice((scale, scale.capitalize()))
        text = f"{text.rstrip('.?!')} in {spelled}{text[-1] if text[-1] in '.?!' else ''}"
        arguments[weather.unit] = scale
    return user(spoken(rng, text)), call_message(rng, weather.name, arguments), city


def _calculator_result(rng: Random, expression: str) -> tuple[str, str]:
    value = rng.choice((str(rng.randint(-99, 9999)), str(rng.randint(0, 99)), _decimal(rng)))
    if rng.random() < 0.08:
        return _failure(rng, ("division by zero", "invalid expression", "no result"))
    key = rng.choice(("result", "result", "value", "answer"))
    expression_and_value = {"expression": expression, key: as_number(value)}
    result = rng.choice(
        (
            value,
            value,
            json.dumps({key: as_number(value)}),
            json.dumps(expression_and_value),
            f"{expression} = {value}",
            f"The result is {value}",
        )
    )
    return result, f"{expression} = {value}"


def _weather_result(rng: Random, city: str) -> tuple[str, str]:
    if rng.random() < 0.08:
        return _failure(rng, ("city not found", "unknown city", "no data"))
    degrees, sky = rng.randint(-20, 40), rng.choice(_SKIES)
    letter, unit = rng.choice((("C", "celsius"), ("C", "celsius"), ("F", "fahrenheit")))
    warmth = rng.choice(("temperature", "temperature", "temp", "degrees"))
    sky_key = rng.choice(("condition", "conditions", "sky", "description", "weather"))
    fields = [
        (warmth, rng.choice((degrees, f"{degrees} °{letter}", f"{degrees}°{letter}"))),
        (sky_key, sky),
    ]
    if isinstance(fields[0][1], int) and (letter == "F" or rng.random() < 0.5):
        fields.insert(rng.choice((1, 2)), ("unit", rng.choice((unit, letter))))
    if rng.random() < 0.3:
        fields.insert(0, (rng.choice(("city", "location")), city))
    if rng.random() < 0.2:
        fields.append(("humidity", rng.randint(10, 99)))
    if rng.random() < 0.25:
        fields = [field for field in fields if field[0] != sky_key]
        sky = ""
    if rng.random() < 0.3:
        result = f"{degrees} °{letter}, {sky}" if sky else f"{degrees} °{letter}"
        if rng.random() < 0.5:
            result = f"{city}: {result}"
    else:
        result = json.dumps(dict(fields), ensure_ascii=rng.random() < 0.2)
    described = f"{degrees} °{letter} and {sky}" if sky else f"{degrees} °{letter}"
    return result, f"It is {described} in {city}."


def _failure(rng: Random, reasons: tuple[str, ...]) -> tuple[str, str]:
    reason = rng.choice(reasons)
    result = rng.choice((json.dumps({"error": reason}), f"Error: {reason}", f"error: {reason}"))
    return result, f"The tool answered with an error: {reason}."


def _operand(rng: Random) -> str:
    if rng.random() < 0.1:
        return _decimal(rng)
    return str(rng.randint(2, 10 ** rng.randint(1, 4) - 1))


def _decimal(rng: Random) -> str:
    return str(rng.randint(1, 999) / rng.choice((2, 4, 5, 10)))
