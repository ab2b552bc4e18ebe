"""Checks of tool calls."""

from __future__ import annotations

from typing import Any

from axion.conformance.check import Finding, accepted, check, dropped, found, honoured
from axion.conformance.probe import Probe
from axion.conformance.server import Answer, RefusedError
from axion.conformance.structured import SCHEMA, follows_schema

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


def _fault_of_calls(answer: Answer, names: tuple[str, ...]) -> str:
    """What is wrong with an answer that must be calls of one of `names`."""
    calls = answer.first.calls
    if not calls:
        return f"no call: {answer.text[:40]!r}"
    is_cut = answer.finish_reason == "length"
    for i, (name, arguments) in enumerate(calls):
        if name not in names:
            return f"a call of {name!r}"
        if not follows_schema(arguments, is_cut and i == len(calls) - 1):
            return f"arguments that do not match the schema: {arguments[:40]!r}"
    return ""


async def _calls(probe: Probe, names: tuple[str, ...], choice: Any) -> Finding:
    for more in ({}, {"temperature": 1}, {"stream": True}):
        answer = await _ask(probe, tools=_tools(), tool_choice=choice, **more)
        if fault := _fault_of_calls(answer, names):
            return dropped(f"{fault}{', streamed' if more.get('stream') else ''}")
    return honoured("calls, whose arguments match their schema, streamed and whole")


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
    loose = [await _ask(probe, tools=_tools(), temperature=t) for t in (0, 1, 1)]
    strict = [await _ask(probe, tools=_tools(strict=True), temperature=t) for t in (0, 1, 1)]
    for answer in strict:
        if answer.first.calls and (fault := _fault_of_calls(answer, _NAMES)):
            return dropped(fault)
    if any(answer.first.calls and _fault_of_calls(answer, _NAMES) for answer in loose) and any(
        answer.first.calls for answer in strict
    ):
        return honoured("calls match their schema, without it they do not")
    impossible = {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}, False]}}}
    impossible["required"] = ["a"]
    function = {"name": _NAMES[0], "parameters": impossible}
    await _ask(probe, tools=[{"type": "function", "function": function}])
    try:
        await _ask(probe, tools=[{"type": "function", "function": {**function, "strict": True}}])
    except RefusedError:
        return honoured("a schema that nothing satisfies is refused with it, and taken without")
    if all(answer.first.calls for answer in strict):
        return accepted("calls match their schema without it too")
    return accepted("the model calls no tool by itself")
