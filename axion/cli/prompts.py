"""The prompts that engines are asked, as requests."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from axion.errors import InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.completions import CompletionRequest
from axion.openai.parsing import validate_request

# A line of text, or the body of a request.
Prompt = str | dict[str, Any]
Request = ChatCompletionRequest | CompletionRequest

_PROMPTS = (
    "What is 17 + 25?",
    "Name the capital of France.",
    "Write one sentence about the sea.",
    "List three primary colors.",
    "Explain in two sentences why the sky is blue.",
    "Spell the word 'engine' backwards.",
    "Say hello in three languages.",
    "What comes after Tuesday?",
)


def read_prompts(place: str | None) -> list[Prompt]:
    """The prompts of a file, or of stdin (`-`); a few questions where no place is named.

    Raises:
        InvalidRequestError: they cannot be read, or one is not valid.
    """
    if place is None:
        return [*_PROMPTS]
    try:
        data = sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InvalidRequestError(f"The prompts {place} cannot be read: {reason}.") from None
    except UnicodeDecodeError:
        raise InvalidRequestError(f"The prompts {place} are not UTF-8 text.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InvalidRequestError(f"There is no prompt in {place}.")
    if not numbered[0][1].lstrip().startswith("{"):
        return [line for _, line in numbered]
    return [_read_body(line, f"Line {number} of {place}") for number, line in numbered]


def _read_body(line: str, where: str) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except ValueError as error:
        raise InvalidRequestError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(body, dict) or ("prompt" in body) == ("messages" in body):
        raise InvalidRequestError(f"{where} must be an object with either messages or prompt.")
    try:
        make_request(body)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{where}: {error.message}") from None
    return body


def make_request(
    prompt: Prompt, *, as_chat: bool = True, temperature: float = 0.0, max_tokens: int = 1
) -> Request:
    """A request for a stream of one answer.

    Args:
        as_chat: whether a plain text is a message to answer; else it is a text to continue.
        temperature, max_tokens: where the prompt says nothing of its own.

    Raises:
        InvalidRequestError: a field of the prompt cannot be.
    """
    if isinstance(prompt, str):
        message = {"role": "user", "content": prompt}
        prompt = {"messages": [message]} if as_chat else {"prompt": prompt}
    fields = {"model": "-", "temperature": temperature, **prompt}
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    if not fields.keys() & {"max_tokens", "max_completion_tokens"}:
        fields["max_tokens"] = max_tokens
    if "prompt" in fields:
        return validate_request(CompletionRequest, fields)
    return validate_request(ChatCompletionRequest, fields)
