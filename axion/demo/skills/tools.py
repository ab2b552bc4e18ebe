"""The calculator and weather tools that requests offer, declared in many ways."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from axion.demo.skills.base import (
    Split,
    Tool,
    draw,
    phrasings,
)
from axion.demo.words import WORDS, invented_word

SYMBOLS = ("+", "-", "*", "/")

_CALCULATOR_NAMES = phrasings(
    """
    calculator | calculator | calculator | calculate | calc | math | compute | evaluate | solve |
    evaluate_expression | calculate_expression | run_math | math_tool | math_eval | number_tool |
    calculator_tool | arithmetic_tool | do_calculation | simple_calculator | get_result
    """,
    """
    calculator | calculator | do_math | eval | arithmetic | calculate_numbers
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
    expression | expression | expression | expr | formula | input | query | text | equation |
    problem | math | calculation_text | expression_string | input_expression | math_problem
    """,
    """
    expression | expression | calculation | math_expression
    """,
)
_OPERAND_NAMES = phrasings(
    """
    a b | a b | x y | first second | left right | num1 num2 | number1 number2 | n m |
    first_number second_number
    """,
    """
    a b | a b | x y | left right | number_a number_b
    """,
)
_SIGN_NAMES = phrasings(
    """
    op | op | operation | operation | operator | operator | action | sign | kind | method
    """,
    """
    op | operation | operator | math_operation
    """,
)
_OPERATION_NAMES = (
    ("add", "subtract", "multiply", "divide"),
    ("+", "-", "*", "/"),
    ("plus", "minus", "times", "divide"),
)
_WEATHER_NAMES = phrasings(
    """
    get_weather | get_weather | get_weather | weather | get_current_weather | current_weather |
    weather_lookup | lookup_weather | fetch_weather | check_weather | find_weather | weather_tool |
    forecast | weather_forecast | city_weather | get_city_weather | temperature | show_forecast |
    current_temperature | fetch_temperature | get_conditions
    """,
    """
    get_weather | get_weather | get_forecast | weather_report | show_weather | get_temperature
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
    city | city | city | location | location | location | place | town | city_name | place_name |
    where | region | destination | target_city
    """,
    """
    city | city | location | location | location_name | area
    """,
)
_PLACE_TEXTS = (
    "The name of the city",
    "The city and state, e.g. San Francisco, CA",
    "City and country e.g. Bogota, Colombia",
    "City name",
    "The location",
)


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
        return {first: as_number(left), second: as_number(right), operation: self.operations[sign]}


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


Offer = tuple[Calculator | Weather, ...]


def random_offer(rng: Random, split: Split) -> Offer:
    """A calculator, a weather tool, or both in either order."""
    calculator, weather = random_calculator(rng, split), random_weather(rng, split)
    return rng.choice(((calculator,), (weather,), (calculator, weather), (weather, calculator)))


def random_calculator(rng: Random, split: Split) -> Calculator:
    """A calculator tool under some name, with one expression or with two numbers and a sign."""
    if rng.random() < 0.6:
        argument = _renamed(rng, split, _EXPRESSION_NAMES.pick(rng, split), 0.4)
        operands: tuple[str, ...] = (argument,)
        texts = ("The expression to evaluate", "An arithmetic expression, e.g. 2 + 2")
        properties = {argument: _described(rng, {"type": "string"}, rng.choice(texts))}
        operations: dict[str, str] = {}
    else:
        left, right = (
            _renamed(rng, split, name, 0.25) for name in _OPERAND_NAMES.pick(rng, split).split()
        )
        sign = _renamed(rng, split, _SIGN_NAMES.pick(rng, split), 0.3)
        operands = (left, right, sign)
        names = rng.choice(_OPERATION_NAMES)
        operations = dict(zip(SYMBOLS, names, strict=True))
        number = {"type": rng.choice(("number", "number", "integer"))}
        properties = {
            left: _described(rng, number, "The first number"),
            right: _described(rng, number, "The second number"),
            sign: {"type": "string", "enum": list(names)},
        }
    name = _renamed(rng, split, _CALCULATOR_NAMES.pick(rng, split), 0.5)
    tool = _tool(rng, name, _CALCULATOR_TEXTS.pick(rng, split), properties, list(operands))
    return Calculator(tool, operands, operations)


def random_weather(rng: Random, split: Split) -> Weather:
    """A weather tool under some name, with a place and perhaps a unit."""
    place = _renamed(rng, split, _PLACE_NAMES.pick(rng, split), 0.4)
    properties = {place: _described(rng, {"type": "string"}, rng.choice(_PLACE_TEXTS))}
    unit = None
    if rng.random() < 0.4:
        unit = _renamed(rng, split, rng.choice(("unit", "units")), 0.4)
        properties[unit] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    name = _renamed(rng, split, _WEATHER_NAMES.pick(rng, split), 0.5)
    tool = _tool(rng, name, _WEATHER_TEXTS.pick(rng, split), properties, [place])
    return Weather(tool, place, unit)


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


def _renamed(rng: Random, split: Split, name: str, chance: float) -> str:
    """The name or, in training and at this chance, one that has to be read from the schema."""
    if split == "held_out" or rng.random() >= chance:
        return name
    parts = [draw(rng, split, _name_part) for _ in range(2)]
    return rng.choice((parts[0], "_".join(parts), f"{name}_{parts[0]}", f"{parts[0]}_{name}"))


def _name_part(rng: Random) -> str:
    return rng.choice((rng.choice(WORDS), invented_word(rng)))


def as_number(text: str) -> int | float:
    """The number that a text spells."""
    return float(text) if "." in text else int(text)
