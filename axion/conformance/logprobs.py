"""Checks of log probabilities."""

from __future__ import annotations

import math
from typing import Any

from axion.conformance.check import Finding, check, dropped, found, honoured
from axion.conformance.probe import Probe
from axion.conformance.server import Answer

_LIMIT = 8
# OpenAI's limit is the last one.
_ALTERNATIVES = (1, 5, 20)
_ROUNDING = 1e-3


@check("logprobs")
async def logprobs(probe: Probe) -> Finding:
    for stream in (None, True):
        if probe.kind == "chat":
            answer = await probe.ask(
                logprobs=True, top_logprobs=2, max_tokens=_LIMIT, stream=stream
            )
            fault = _fault_of_chat(answer)
        else:
            answer = await probe.ask(logprobs=2, max_tokens=_LIMIT, stream=stream)
            fault = _fault_of_text(answer)
        if fault:
            return dropped(f"{fault}, {'streamed' if stream else 'whole'}")
    bare = await probe.ask(logprobs=True if probe.kind == "chat" else 0, max_tokens=_LIMIT)
    lists = bare.first.logprobs or {}
    if not (lists.get("content") or lists.get("tokens")):
        return dropped("without alternatives there are none")
    if probe.kind == "text" and "content" in lists:
        return honoured("as they should be, in chat's form")
    return honoured("one entry a token, the chosen one among the likeliest, sums at most 1")


@check("top_logprobs", "chat")
async def top_logprobs(probe: Probe) -> Finding:
    counts = []
    for asked in _ALTERNATIVES:
        answer = await probe.ask(logprobs=True, top_logprobs=asked, max_tokens=4)
        entries = (answer.first.logprobs or {}).get("content") or [{}]
        counts.append(min(len(entry.get("top_logprobs") or ()) for entry in entries))
    return found(
        counts == [*_ALTERNATIVES],
        f"as many alternatives as asked for, up to {_ALTERNATIVES[-1]}",
        f"{counts} alternatives where {[*_ALTERNATIVES]} are asked for",
    )


def _fault_of_chat(answer: Answer) -> str:
    entries = (answer.first.logprobs or {}).get("content")
    if not entries:
        return "no log probabilities"
    if answer.usages and len(entries) != answer.num_tokens:
        return f"{len(entries)} entries for {answer.num_tokens} tokens"
    for entry in entries:
        top = entry.get("top_logprobs")
        if not isinstance(top, list) or not top:
            return "an entry without top_logprobs"
        for item in (entry, *top):
            given = item.get("bytes", "")
            token = item.get("token")
            if not isinstance(token, str) or given == "":
                return "an entry without token or bytes"
            if given is not None and not _may_be(token, bytes(given)):
                return f"bytes that are not those of the token {token!r}"
        fault = _fault_of_values(entry.get("logprob"), [item.get("logprob") for item in top])
        if fault:
            return fault
    together = "".join(entry["token"] for entry in entries)
    is_whole = all(entry["bytes"] is None or _is_text(entry["bytes"]) for entry in entries)
    if is_whole and "\ufffd" not in together + answer.text and not together.startswith(answer.text):
        return "tokens that are not those of the text"
    return ""


def _is_text(data: list[int]) -> bool:
    return "\ufffd" not in bytes(data).decode(errors="replace")


def _may_be(token: str, data: bytes) -> bool:
    """Whether a token's text and bytes agree; of a part of a character the text is anything."""
    try:
        return data.decode() == token
    except UnicodeDecodeError:
        return True


def _fault_of_text(answer: Answer) -> str:
    lists = answer.first.logprobs or {}
    if "content" in lists:  # as some servers have it, in chat's form
        return _fault_of_chat(answer)
    tokens, chosen, top, offsets = (
        lists.get(name) or []
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    )
    if not tokens:
        return "no log probabilities"
    if len({len(tokens), len(chosen), len(top), len(offsets)}) > 1:
        return "lists of different lengths"
    if answer.usages and len(tokens) != answer.num_tokens:
        return f"{len(tokens)} entries for {answer.num_tokens} tokens"
    for value, others in zip(chosen, top, strict=True):
        if fault := _fault_of_values(value, list((others or {}).values())):
            return fault
    return "text_offset that falls" if offsets != sorted(offsets) else ""


def _fault_of_values(chosen: Any, top: list[Any]) -> str:
    """What is wrong with the values at one place of an answer at temperature 0."""
    if not all(isinstance(value, int | float) for value in (chosen, *top)) or not top:
        return "an entry without a number"
    if any(math.isnan(value) or value > _ROUNDING for value in (chosen, *top)):
        return "a log probability above 0"
    if sum(math.exp(value) for value in {*top}) > 1 + _ROUNDING:
        return "probabilities whose sum is above 1"
    if chosen < max(top) - _ROUNDING:
        return "a chosen token that is not the likeliest"
    return ""
