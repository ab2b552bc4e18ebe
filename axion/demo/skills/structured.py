"""Answering with JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from axion.demo.skills.base import (
    Exchange,
    Split,
    assistant,
    draw,
    listed,
    phrasings,
    says_json,
    spoken,
    user,
)
from axion.demo.words import CITIES, NAMES, WORDS, invented_word, words_of

Value = str | int | float | bool

COLORS = words_of("red green blue yellow black white brown pink gray orange purple silver")

OBJECT = phrasings(
    train="""
        Give me a JSON object with {fields}. | Give me JSON with {fields}. |
        Write a JSON object with {fields}. | Write JSON with {fields}. |
        Make a JSON object with {fields}. | Return a JSON object with {fields}. |
        Return JSON: {fields}. | Answer in JSON: {fields}. | As JSON: {fields}. |
        Create a JSON object with {fields}. | Can you write a JSON object with {fields}? |
        I need a JSON object with {fields}. | Turn this into JSON: {fields}. |
        JSON with {fields}. | Convert to JSON: {fields}.
    """,
    held_out="""
        Can you give me a JSON object with {fields}? | I need JSON with {fields}. |
        Create JSON with {fields}. | Write this as JSON: {fields}. |
        Can you make a JSON object with {fields}?
    """,
)

LIST = phrasings(
    train="""
        Give me a JSON list of {items}. | Give me a JSON array with {items}. |
        Write a JSON list with {items}. | Make a JSON array of {items}. |
        Return a JSON list of {items}. | Write {items} as a JSON list. |
        Turn this into a JSON list: {items}.
    """,
    held_out="""
        Write a JSON array of {items}. | Give me {items} as a JSON list. |
        Can you make a JSON list of {items}?
    """,
)


_FIELD_FORMS = ("{k} {v}", "{k} {v}", "{k} = {v}", "{k}: {v}", "{k} is {v}", "{k} set to {v}")


def json_answer(rng: Random, split: Split) -> Exchange:
    """An object or a list, written as JSON and as nothing else."""
    build = rng.choice(
        (_flat, _flat, _flat, _flat, _with_list, _with_list, _nested, _people, _list)
    )
    question, value = build(rng, split)
    return Exchange(
        [user(spoken(rng, question))],
        assistant(json.dumps(value, ensure_ascii=False)),
        says_json(value),
    )


def _flat(rng: Random, split: Split) -> tuple[str, Any]:
    fields = _fields(rng, split, rng.choice((1, 2, 2, 2, 3, 3, 4)))
    return OBJECT.pick(rng, split).format(fields=_describe(rng, fields)), fields


def _with_list(rng: Random, split: Split) -> tuple[str, Any]:
    fields: dict[str, Any] = dict(_fields(rng, split, rng.choice((0, 1, 1, 2))))
    key = rng.choice(("colors", "tags", "numbers", "items", "names", "words", "values"))
    items = _items(rng, split, key)
    parts = [_describe(rng, fields)] if fields else []
    form = rng.choice(
        ("{k} {v}", "{k} {v}", "a list {k} of {v}", "a list {k} with {v}", "{k}: {v}")
    )
    parts.append(form.format(k=key, v=listed([_written(item) for item in items])))
    fields[key] = items
    return OBJECT.pick(rng, split).format(fields=" and ".join(parts)), fields


def _nested(rng: Random, split: Split) -> tuple[str, Any]:
    key = rng.choice(("user", "person", "item", "product", "address", "data", "pet"))
    fields = _fields(rng, split, rng.choice((1, 2, 2)))
    form = rng.choice(("a {k} with {f}", "an object {k} with {f}", "a nested {k} with {f}"))
    described = form.format(k=key, f=_describe(rng, fields))
    return OBJECT.pick(rng, split).format(fields=described), {key: fields}


def _people(rng: Random, split: Split) -> tuple[str, Any]:
    key = rng.choice(("people", "users", "friends", "students"))
    people = [
        {"name": _name(rng, split), "age": rng.randint(1, 99)} for _ in range(rng.choice((1, 2, 2)))
    ]
    form = rng.choice(("{n} who is {a}", "{n}, age {a}", "{n} aged {a}"))
    described = listed([form.format(n=person["name"], a=person["age"]) for person in people])
    text = OBJECT.pick(rng, split).format(fields=f"a list {key}: {described}")
    return text, {key: people}


def _list(rng: Random, split: Split) -> tuple[str, Any]:
    items = _items(rng, split, rng.choice(("colors", "numbers", "words", "names", "numbers")))
    described = listed([_written(item) for item in items])
    return LIST.pick(rng, split).format(items=described), items


def _fields(rng: Random, split: Split, number: int) -> dict[str, Value]:
    keys = rng.sample(sorted(_VALUES), number)
    fields = {key: _VALUES[key](rng, split) for key in keys}
    if number > 1 and rng.random() < 0.5:  # the pair that people try first
        fields = {"name": _name(rng, split), "age": rng.randint(1, 99), **fields}
        fields = dict(list(fields.items())[:number])
    if fields and rng.random() < 0.2:  # a key that is in no list
        fields.pop(rng.choice(list(fields)))
        fields[_word(rng, split)] = rng.choice((_word(rng, split), rng.randint(0, 999)))
    return fields


def _items(rng: Random, split: Split, kind: str) -> list[Value]:
    makers: dict[str, Callable[[Random, Split], Value]] = {
        "colors": lambda rng, split: rng.choice(COLORS),
        "numbers": lambda rng, split: rng.randint(0, 99),
        "values": lambda rng, split: rng.randint(0, 999),
        "names": _name,
    }
    make = makers.get(kind, _word)
    return [make(rng, split) for _ in range(rng.randint(2, 4))]


def _describe(rng: Random, fields: dict[str, Any]) -> str:
    form = rng.choice(_FIELD_FORMS)
    return listed([form.format(k=key, v=_written(value)) for key, value in fields.items()])


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name(rng: Random, split: Split) -> str:
    if split == "train" and rng.random() < 0.3:
        return draw(rng, split, invented_word).capitalize()
    return draw(rng, split, lambda rng: rng.choice(NAMES))


def _word(rng: Random, split: Split) -> str:
    if split == "train" and rng.random() < 0.3:
        return draw(rng, split, invented_word)
    return draw(rng, split, lambda rng: rng.choice(WORDS))


def _city(rng: Random, split: Split) -> str:
    return draw(rng, split, lambda rng: rng.choice(CITIES))


_VALUES: dict[str, Callable[[Random, Split], Value]] = {
    "name": _name,
    "age": lambda rng, split: rng.randint(1, 99),
    "city": _city,
    "color": lambda rng, split: rng.choice(COLORS),
    "price": lambda rng, split: rng.choice((rng.randint(1, 999), rng.randint(100, 9999) / 100)),
    "item": _word,
    "title": _word,
    "year": lambda rng, split: rng.randint(1900, 2030),
    "count": lambda rng, split: rng.randint(0, 99),
    "id": lambda rng, split: rng.randint(1, 9999),
    "active": lambda rng, split: rng.random() < 0.5,
    "animal": _word,
    "size": lambda rng, split: rng.choice(("small", "medium", "large")),
}
