"""Calling the tools that a request offers, and saying what they returned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from axion.demo.skills import arithmetic, talk
from axion.demo.skills.base import (
    Exchange,
    Message,
    Phrasings,
    Split,
    Tool,
    assistant,
    draw,
    phrasings,
    spoken,
    user,
)
from axion.demo.words import CITIES, WORDS, invented_word

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"

SYMBOLS = ("+", "-", "*", "/")
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

_CALCULATOR_NAMES = phrasings(
    """
    calculator | calculator | calculate | calc | math | compute | evaluate_expression
    """,
    """
    calculator | do_math | eval | arithmetic
    """,
)
_CALCULATOR_TEXTS = phrasings(
    """
    Evaluate an arithmetic expression. | A calculator. | Calculate the result of an expression |
    Do arithmetic with two numbers. | Useful for math. | Compute a number. |
    Perform a calculation
    """,
    """
    Evaluates a math expression. | A simple calculator | Calculates numbers.
    """,
)
_EXPRESSION_NAMES = phrasings(
    """
    expression | expression | expr | formula | input | query | text
    """,
    """
    expression | calculation | math_expression
    """,
)
_OPERAND_NAMES = phrasings(
    """
    a b op | a b op | a b operation | x y operator | first second operation | left right op
    """,
    """
    a b op | x y op | a b operator | left right operation
    """,
)
_OPERATION_NAMES = (
    ("add", "subtract", "multiply", "divide"),
    ("+", "-", "*", "/"),
    ("plus", "minus", "times", "divide"),
)
_WEATHER_NAMES = phrasings(
    """
    get_weather | get_weather | weather | get_current_weather | current_weather | weather_lookup |
    lookup_weather | fetch_weather
    """,
    """
    get_weather | get_forecast | weather_report | show_weather | get_temperature
    """,
)
_WEATHER_TEXTS = phrasings(
    """
    Get the weather in a city. | Get the current weather in a given location |
    Look up the weather. | The weather of a city right now. |
    Get current temperature for a given location. | Returns the weather for a place
    """,
    """
    Get the current weather for a city. | Returns the temperature in a city. | Weather lookup.
    """,
)
_PLACE_NAMES = phrasings(
    """
    city | city | location | location | place | town | city_name
    """,
    """
    city | location | location_name | area
    """,
)
_PLACE_TEXTS = (
    "The name of the city",
    "The city and state, e.g. San Francisco, CA",
    "City and country e.g. Bogota, Colombia",
    "City name",
    "The location",
)

_SKIES = ("sunny", "cloudy", "rainy", "snowy", "windy", "foggy", "clear", "stormy")


@dataclass(frozen=True)
class Calculator:
    """A calculator as one user happened to declare it."""

    tool: Tool
    operands: tuple[str, ...]
    operations: dict[str, str]

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.tool["function"]["name"])

    def arguments(self, expression: str) -> dict[str, Any]:
        """The arguments for an expression such as "12 * 7"."""
        if not self.operations:
            return {self.operands[0]: expression}
        left, sign, right = expression.split()
        first, second, operation = self.operands
        return {first: _number(left), second: _number(right), operation: self.operations[sign]}


@dataclass(frozen=True)
class Weather:
    """A weather tool as one user happened to declare it."""

    tool: Tool
    place: str
    unit: str | None

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.tool["function"]["name"])


def tool_call(rng: Random, split: Split) -> Exchange:
    """A request with tools: calls the one that fits, or answers in words when none is needed."""
    calculator, weather = random_calculator(rng, split), random_weather(rng, split)
    offered = rng.choice(((calculator,), (weather,), (calculator, weather), (weather, calculator)))
    tools = [each.tool for each in offered]
    kind = rng.random()
    if kind < 0.15:
        plain = talk.greet(rng, split)
    elif kind < 0.22:
        plain = rng.choice((talk.about, talk.limits))(rng, split)
        while plain.answer["content"] in (talk.ONLY_SMALL_NUMBERS, talk.NO_WEATHER):
            plain = talk.limits(rng, split)
    elif kind < 0.3 and len(offered) == 1:
        missing = (
            (talk.no_weather,) if calculator in offered else (arithmetic.add, talk.no_calculator)
        )
        plain = rng.choice(missing)(rng, split)
    else:
        chosen = rng.choice(offered)
        if isinstance(chosen, Calculator):
            question, call, _ = _calculation(rng, split, chosen)
        else:
            question, call, _ = _weather_question(rng, split, chosen)
        return Exchange([question], call, _calls(call), tools)
    return Exchange(plain.messages, plain.answer, plain.check, tools)


def tool_result(rng: Random, split: Split) -> Exchange:
    """A tool has answered: says the result in a sentence."""
    calculator, weather = random_calculator(rng, split), random_weather(rng, split)
    chosen = rng.choice((calculator, weather))
    offered = rng.choice(((chosen,), (calculator, weather), (weather, calculator)))
    if isinstance(chosen, Calculator):
        question, call, subject = _calculation(rng, split, chosen)
        result, answer, needed = _calculator_result(rng, subject)
    else:
        question, call, subject = _weather_question(rng, split, chosen)
        result, answer, needed = _weather_result(rng, subject)
    reply: Message = {"role": "tool", "content": result}
    if rng.random() < 0.7:
        reply["tool_call_id"] = call["tool_calls"][0]["id"]
    return Exchange(
        [question, call, reply],
        assistant(answer),
        lambda text: CALL_OPEN not in text and all(part in text for part in needed),
        [each.tool for each in offered],
    )


def random_calculator(rng: Random, split: Split) -> Calculator:
    """A calculator tool under some name, with one expression or with two numbers and a sign."""
    if rng.random() < 0.6:
        operands: tuple[str, ...] = (_EXPRESSION_NAMES.pick(rng, split),)
        if split == "train" and rng.random() < 0.25:
            operands = (draw(rng, split, invented_word),)
        texts = ("The expression to evaluate", "An arithmetic expression, e.g. 2 + 2")
        properties = {operands[0]: _described(rng, {"type": "string"}, rng.choice(texts))}
        operations: dict[str, str] = {}
    else:
        operands = tuple(_OPERAND_NAMES.pick(rng, split).split())
        names = rng.choice(_OPERATION_NAMES)
        operations = dict(zip(SYMBOLS, names, strict=True))
        number = {"type": rng.choice(("number", "number", "integer"))}
        properties = {
            operands[0]: _described(rng, number, "The first number"),
            operands[1]: _described(rng, number, "The second number"),
            operands[2]: {"type": "string", "enum": list(names)},
        }
    name = _name(rng, split, _CALCULATOR_NAMES)
    tool = _tool(rng, name, _CALCULATOR_TEXTS.pick(rng, split), properties, list(operands))
    return Calculator(tool, operands, operations)


def random_weather(rng: Random, split: Split) -> Weather:
    """A weather tool under some name, with a place and perhaps a unit."""
    place = _PLACE_NAMES.pick(rng, split)
    if split == "train" and rng.random() < 0.25:
        place = draw(rng, split, invented_word)
    properties = {place: _described(rng, {"type": "string"}, rng.choice(_PLACE_TEXTS))}
    unit = rng.choice(("unit", "units")) if rng.random() < 0.4 else None
    if unit:
        properties[unit] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    name = _name(rng, split, _WEATHER_NAMES)
    tool = _tool(rng, name, _WEATHER_TEXTS.pick(rng, split), properties, [place])
    return Weather(tool, place, unit)


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


def _calculator_result(rng: Random, expression: str) -> tuple[str, str, list[str]]:
    value = rng.choice((str(rng.randint(-99, 9999)), str(rng.randint(0, 99)), _decimal(rng)))
    if rng.random() < 0.08:
        return _failure(rng, ("division by zero", "invalid expression", "no result"))
    key = rng.choice(("result", "result", "value", "answer"))
    expression_and_value = {"expression": expression, key: _number(value)}
    result = rng.choice(
        (
            value,
            value,
            json.dumps({key: _number(value)}),
            json.dumps(expression_and_value),
            f"{expression} = {value}",
            f"The result is {value}",
        )
    )
    answer = f"{expression} = {value}"
    return result, answer, [answer]


def _weather_result(rng: Random, city: str) -> tuple[str, str, list[str]]:
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
    return result, f"It is {described} in {city}.", [f"{degrees} °{letter}", sky, city]


def _failure(rng: Random, reasons: tuple[str, ...]) -> tuple[str, str, list[str]]:
    reason = rng.choice(reasons)
    result = rng.choice((json.dumps({"error": reason}), f"Error: {reason}", f"error: {reason}"))
    return result, f"The tool answered with an error: {reason}.", ["error", reason]


def _tool(
    rng: Random, name: str, text: str, properties: dict[str, Any], required: list[str]
) -> Tool:
    parameters: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if rng.random() < 0.15:
        parameters["additionalProperties"] = False
    if rng.random() < 0.05:
        del parameters["required"]
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.85:
        function["description"] = text
    function["parameters"] = parameters
    if rng.random() < 0.05:
        function["strict"] = rng.choice((True, False))
    return {"type": "function", "function": function}


def _described(rng: Random, schema: dict[str, Any], text: str) -> dict[str, Any]:
    if rng.random() < 0.5:
        return schema
    return {**schema, "description": text}


def _name(rng: Random, split: Split, names: Phrasings) -> str:
    name = names.pick(rng, split)
    if split == "train" and rng.random() < 0.255:
        part = draw(rng, split, lambda rng: rng.choice((rng.choice(WORDS), invented_word(rng))))
        name = rng.choice((part, f"{name}_{part}", f"{part}_{name}"))
    return name


def _operand(rng: Random) -> str:
    if rng.random() < 0.1:
        return _decimal(rng)
    return str(rng.randint(2, 10 ** rng.randint(1, 4) - 1))


def _decimal(rng: Random) -> str:
    return str(rng.randint(1, 999) / rng.choice((2, 4, 5, 10)))


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)
