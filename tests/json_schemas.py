"""Random JSON schemas whose values stay short even when a model picks them by dice."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

NAMES = ["name", "age", "tags", "x", "is_ok", "größe", "a b", 'quo"te', "id"]
PATTERNS = [r"^[a-c]{2,4}$", r"^\d{3}-\d{2}$", r"x|y", r"^(foo|bar)+?baz$", r"^[^\s\"]{1,5}$"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4"]
VALUES = [None, True, 0, -1, 3.5, "", "red", 'a"b\\', "naïve ☃", [], [1, "two"], {}, {"k": [None]}]


def json_schema(rng: random.Random) -> Schema:
    """A schema, now and then with definitions that it refers to, one of them to itself."""
    names = ["point", "tree"] if rng.random() < 0.3 else []
    schema = _any(rng, 3, names)
    if names:
        schema["$defs"] = {
            "point": _object(rng, 1, []),
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "minimum": 0, "maximum": 99},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            },
        }
    return schema


def _any(rng: random.Random, depth: int, names: list[str]) -> Schema:
    kinds = [_string, _string, _integer, _number, _constant, _enum, _simple]
    if depth > 0:
        kinds += [_object, _object, _object, _array, _array, _any_of, _all_of]
        if names:
            kinds += [_ref, _ref]
    return rng.choice(kinds)(rng, depth, names)


def _string(rng: random.Random, depth: int, names: list[str]) -> Schema:
    schema: Schema = {"type": "string"}
    match rng.randrange(3):
        case 0:
            schema["minLength"] = rng.randrange(4)
            schema["maxLength"] = schema["minLength"] + rng.randrange(6)
        case 1:
            schema |= {"pattern": rng.choice(PATTERNS), "maxLength": 12}
        case 2:
            schema["format"] = rng.choice(FORMATS)
    return schema


def _integer(rng: random.Random, depth: int, names: list[str]) -> Schema:
    low = rng.randrange(-1000, 1000)
    schema: Schema = {"type": "integer", "minimum": low, "maximum": low + rng.randrange(500)}
    if rng.random() < 0.3:
        schema |= {"multipleOf": rng.choice([2, 5, 10]), "maximum": low + 100}
    return schema


def _number(rng: random.Random, depth: int, names: list[str]) -> Schema:
    low = rng.randrange(-100, 100) / 4
    return {
        "type": "number",
        rng.choice(["minimum", "exclusiveMinimum"]): low,
        rng.choice(["maximum", "exclusiveMaximum"]): low + rng.randrange(1, 100) / 4,
    }


def _constant(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"const": rng.choice(VALUES)}


def _enum(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"enum": rng.sample(VALUES, rng.randrange(1, 5))}


def _simple(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"type": rng.choice(["null", "boolean", ["boolean", "null"]])}


def _object(rng: random.Random, depth: int, names: list[str]) -> Schema:
    keys = rng.sample(NAMES, rng.randrange(5))
    schema: Schema = {
        "type": "object",
        "properties": {key: _any(rng, depth - 1, names) for key in keys},
        "additionalProperties": False,
    }
    if rng.random() < 0.8:
        schema["required"] = [key for key in keys if rng.random() < 0.7]
    if rng.random() < 0.2:
        schema["patternProperties"] = {"^z[0-9]$": _any(rng, 0, names)}
    return schema


def _array(rng: random.Random, depth: int, names: list[str]) -> Schema:
    low = rng.randrange(3)
    schema: Schema = {
        "type": "array",
        "items": _any(rng, depth - 1, names),
        "minItems": low,
        "maxItems": low + rng.randrange(3),
    }
    if rng.random() < 0.3:
        schema["prefixItems"] = [_any(rng, 0, names) for _ in range(rng.randrange(1, 3))]
    return schema


def _any_of(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"anyOf": [_any(rng, depth - 1, names) for _ in range(rng.randrange(1, 4))]}


def _all_of(rng: random.Random, depth: int, names: list[str]) -> Schema:
    merged = [_object(rng, depth - 1, names) for _ in range(2)]
    for schema in merged:
        schema.pop("additionalProperties")
        schema.pop("patternProperties", None)
        keys = list(schema["properties"])
        schema["properties"] = {f"{rng.random():.9f}": schema["properties"][key] for key in keys}
        schema["required"] = list(schema["properties"])
    return {"allOf": merged, "maxProperties": sum(len(s["properties"]) for s in merged)}


def _ref(rng: random.Random, depth: int, names: list[str]) -> Schema:
    return {"$ref": f"#/$defs/{rng.choice(names)}"}
