"""Checks of tool calls."""

from __future__ import annotations

import itertools
from typing import Any

from axion.conformance.check import Finding, accepted, check, dropped, found, honoured
from axion.conformance.probe import Probe
from axion.conformance.server import Answer, RefusedError
from axion.conformance.structured import SCHEMA, Judge, follows_schema, is_object

_QUESTION = [{"role": "user", "content": "What is the weather in Paris? Call a tool."}]
_NAMES = ("get_weather", "set_alarm")
_LIMIT = 160


def _tools(**fields: Any) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA, **fields}}
        for name in _NAMES
    ]


async def _ask(probe: Probe, **fields: Any) -> Answer:
    return await probe.ask(messages=_QUESTION, **{"max_tokens": _LIMIT, **fields})


def _fault_of_calls(answer: Answer, names: tuple[str, ...], judge: Judge) -> str:
    """What is wrong with an answer that must be calls of one of `names`."""
    calls = answer.first.calls
    if not calls:
        return f"no call: {answer.text[:40]!r}"
    is_cut = answer.finish_reason == "length"
    for i, (name, arguments) in enumerate(calls):
        if name not in names:
            return f"a call of {name!r}"
        if not judge(arguments, is_cut and i == len(calls) - 1):
            return f"arguments that are wrong: {arguments[:40]!r}"
    return ""


async def _calls(probe: Probe, names: tuple[str, ...], choice: Any) -> Finding:
    """Whether there are calls. That their arguments match the schema only `strict` promises."""
    matches = True
    for more in ({}, {"temperature": 1}, {"stream": True}):
        answer = await _ask(probe, tools=_tools(), tool_choice=choice, **more)
        if fault := _fault_of_calls(answer, names, is_object):
            return dropped(f"{fault}{', streamed' if more.get('stream') else ''}")
        matches &= not _fault_of_calls(answer, names, follows_schema)
    schema = "match their schema" if matches else "are objects, and do not match their schema"
    return honoured(f"calls, streamed and whole, whose arguments {schema}")


@check("tools", "chat")
async def tools(probe: Probe) -> Finding:
    without = await probe.given(messages=_QUESTION, max_tokens=_LIMIT)
    answer = await _ask(probe, tools=_tools())
    if not answer.first.calls and any(f'"name": "{name}"' in answer.text for name in _NAMES):
        return dropped("a call is left in the text")
    grown = answer.num_prompt_tokens - without.num_prompt_tokens
    called = "the model calls one" if answer.first.calls else "the model calls none"
    return found(
        grown > 0 or bool(answer.first.calls),
        f"the prompt has them ({grown} tokens); {called}",
        "the prompt does not have them",
    )


@check("tool_choice.none", "chat")
async def tool_choice_none(probe: Probe) -> Finding:
    plain = await probe.given(messages=_QUESTION, max_tokens=_LIMIT)
    answer = await _ask(probe, tools=_tools(), tool_choice="none")
    if answer.first.calls:
        return dropped("the answer is a call")
    try:
        auto = await _ask(probe, tools=_tools())
    except RefusedError:
        return honoured("the answer is no call, where without it the tools are refused")
    if auto.first.calls:
        return honoured("the answer is no call, without it it is one")
    if answer.num_prompt_tokens == plain.num_prompt_tokens != auto.num_prompt_tokens:
        return honoured("the prompt is that of a request without tools")
    return accepted("the model calls no tool without it either")


@check("tool_choice.required", "chat")
async def tool_choice_required(probe: Probe) -> Finding:
    return await _calls(probe, _NAMES, "required")


@check("tool_choice.named", "chat")
async def tool_choice_named(probe: Probe) -> Finding:
    for name in _NAMES:
        choice = {"type": "function", "function": {"name": name}}
        finding = await _calls(probe, (name,), choice)
        if finding.support != "honoured":
            return finding
    return finding


@check("tool_choice.allowed_tools", "chat")
async def tool_choice_allowed_tools(probe: Probe) -> Finding:
    for name in _NAMES:
        allowed = [{"type": "function", "function": {"name": name}}]
        choice = {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": allowed},
        }
        finding = await _calls(probe, (name,), choice)
        if finding.support != "honoured":
            return finding
    return finding


@check("parallel_tool_calls", "chat")
async def parallel_tool_calls(probe: Probe) -> Finding:
    fields: dict[str, Any] = {"tools": _tools(), "max_tokens": 2 * _LIMIT}
    most, where = 0, fields
    for choice in ("required", "auto"):
        for temperature in (0, 1, 1, 2, 2):
            asked = {**fields, "tool_choice": choice, "temperature": temperature}
            try:
                count = len((await _ask(probe, **asked)).first.calls)
            except RefusedError:
                break
            if count > most:
                most, where = count, asked
        if most > 1:
            break
    counts = [
        len((await _ask(probe, **where, parallel_tool_calls=False)).first.calls) for _ in range(4)
    ]
    if max(counts) > 1:
        return dropped(f"false gives {max(counts)} calls")
    if most > 1:
        return honoured(f"false gives one call, true {most}")
    return accepted("the model makes one call at most without it either")


@check("tools.strict", "chat")
async def tools_strict(probe: Probe) -> Finding:
    matched = {}
    num_calls = 0
    for strict in (False, True):
        matched[strict] = True
        for choice, temperature in itertools.product(("auto", "required"), (0, 1, 1)):
            tools = _tools(strict=True) if strict else _tools()
            asked = {"tool_choice": choice, "temperature": temperature}
            try:
                answer = await _ask(probe, tools=tools, **asked)
            except RefusedError:
                if strict and choice == "auto":
                    raise
                break
            if not answer.first.calls:
                continue
            num_calls += strict
            fault = _fault_of_calls(answer, _NAMES, follows_schema)
            if strict and fault:
                return dropped(fault)
            matched[strict] &= not fault
    if num_calls and not matched[False]:
        return honoured("arguments match their schema, without it they do not")
    impossible = {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}, False]}}}
    function = {"name": _NAMES[0], "parameters": {**impossible, "required": ["a"]}}
    loose, bound = (
        [{"type": "function", "function": given}]
        for given in (function, {**function, "strict": True})
    )
    if await _is_taken(probe, loose) and not await _is_taken(probe, bound):
        return honoured("a schema that nothing satisfies is refused with it, and taken without")
    if num_calls:
        return accepted("arguments match their schema without it too")
    return accepted("the model calls no tool by itself")


async def _is_taken(probe: Probe, tools: list[dict[str, Any]]) -> bool:
    try:
        await _ask(probe, tools=tools)
    except RefusedError:
        return False
    return True
