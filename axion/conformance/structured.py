"""Checks of the fields that say what an answer must match."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
from pydantic_core import from_json

from axion.conformance.check import Finding, check, dropped, honoured
from axion.conformance.probe import Probe

# What matches it is a finite set, so that also of an answer which is cut off in the middle of
# white space it can be told whether it was held to the schema.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}
_MEMBERS = (
    ('"ok":true', '"size":"small"'),
    ('"ok":true', '"size":"large"'),
    ('"ok":false', '"size":"small"'),
    ('"ok":false', '"size":"large"'),
)
_MATCHES = ["{" + ",".join(pair) + "}" for members in _MEMBERS
            for pair in itertools.permutations(members)]  # fmt: skip
_CHOICES = ("zebra-17", "quokka-23")
_LIMIT = 96

# Whether an answer is right, or right so far where it was cut off.
Judge = Callable[[str, bool], bool]


def follows_schema(text: str, is_cut: bool) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        compact = "".join(text.split())
        return is_cut and any(match.startswith(compact) for match in _MATCHES)
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(value))


def is_object(text: str, is_cut: bool) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        value = from_json(text, allow_partial="trailing-strings" if is_cut else False)
    except ValueError:
        return False
    return isinstance(value, dict)


def _is_choice(text: str, is_cut: bool) -> bool:
    return text in _CHOICES


async def _held(probe: Probe, judge: Judge, **fields: Any) -> Finding:
    whole = 0
    asked: list[dict[str, Any]] = [{}, {"temperature": 1}, {"temperature": 2}, {"stream": True}]
    for more in asked:
        answer = await probe.ask(max_tokens=_LIMIT, **more, **fields)
        is_cut = answer.finish_reason == "length"
        if not answer.text.strip() and not is_cut:
            return dropped("an answer is empty")
        if not judge(answer.text, is_cut):
            return dropped(f"an answer does not match: {answer.text[:40]!r}")
        whole += not is_cut
    cut = f", {len(asked) - whole} cut by max_tokens match so far" if whole < len(asked) else ""
    return honoured(f"{whole} of {len(asked)} answers at temperature 0 to 2 match{cut}")


@check("response_format.json_object", "chat")
async def json_object(probe: Probe) -> Finding:
    return await _held(
        probe,
        is_object,
        response_format={"type": "json_object"},
        messages=[{"role": "user", "content": "Answer with a JSON object."}],
    )


@check("response_format.json_schema", "chat")
async def json_schema(probe: Probe) -> Finding:
    form = {"name": "answer", "strict": True, "schema": SCHEMA}
    return await _held(
        probe, follows_schema, response_format={"type": "json_schema", "json_schema": form}
    )


@check("response_format.completions", "text")
async def completions_format(probe: Probe) -> Finding:
    return await json_schema(probe)


@check("structured_outputs.json")
async def structured_json(probe: Probe) -> Finding:
    return await _held(probe, follows_schema, structured_outputs={"json": SCHEMA})


@check("structured_outputs.json_object")
async def structured_json_object(probe: Probe) -> Finding:
    return await _held(probe, is_object, structured_outputs={"json_object": True})


@check("structured_outputs.regex")
async def structured_regex(probe: Probe) -> Finding:
    pattern = "[xyz]{4}-[0-9]{3}"
    return await _held(
        probe,
        lambda text, is_cut: re.fullmatch(pattern, text) is not None,
        structured_outputs={"regex": pattern},
    )


@check("structured_outputs.choice")
async def structured_choice(probe: Probe) -> Finding:
    return await _held(probe, _is_choice, structured_outputs={"choice": [*_CHOICES]})


@check("structured_outputs.grammar")
async def structured_grammar(probe: Probe) -> Finding:
    grammar = 'root ::= "zebra-17" | "quokka-23"'
    return await _held(probe, _is_choice, structured_outputs={"grammar": grammar})
