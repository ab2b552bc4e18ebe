"""`axion generate`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from typing import Annotated

import typer

from axion.cli.options import (
    ApiKey,
    MaxTokens,
    ModelName,
    Seed,
    System,
    Temperature,
    TopP,
    Url,
    chat_messages,
    open_model,
    request_body,
)
from axion.cli.session import Answer, Endpoint, terminal_safe
from axion.errors import InvalidRequestError

# The API ends a completion after 16 tokens, which is little for a person.
RAW_MAX_TOKENS = 256


def generate(
    model: ModelName = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="The prompt; - reads it from stdin."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Continue the prompt, without the chat template; "
            f"{RAW_MAX_TOKENS} tokens unless --max-tokens says otherwise.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print text, finish reason, usage and timing as JSON.")
    ] = False,
    system: System = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Answer one prompt on stdout, and nothing else there.

    The prompt goes through the model's chat template if it has one.
    """
    text = _read_prompt(prompt)
    started = time.monotonic()
    answer = Answer()
    with open_model(model, url, api_key) as opened:
        load_s = time.monotonic() - started
        body = request_body(
            opened, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed
        )
        endpoint: Endpoint
        if raw or not opened.has_chat_template:
            if system:
                raise InvalidRequestError("--system needs a chat template, which is not used here.")
            endpoint = "completions"
            body = {"max_tokens": RAW_MAX_TOKENS, **body, "prompt": text}
        else:
            endpoint = "chat/completions"
            body["messages"] = [*chat_messages(system), {"role": "user", "content": text}]
        with closing(opened.stream(endpoint, body)) as chunks:
            answer.read(chunks, (lambda _: None) if as_json else _write)
    if as_json:
        print(_as_json(answer, load_s))
    else:
        _write("\n")


def _read_prompt(prompt: str | None) -> str:
    if prompt is None and sys.stdin.isatty():
        raise InvalidRequestError("There is no prompt. Give one with -p, or on stdin.")
    text = sys.stdin.read() if prompt in (None, "-") else str(prompt)
    if not text.strip():
        raise InvalidRequestError("The prompt is empty. Give one with -p, or on stdin.")
    return text


def _write(text: str) -> None:
    sys.stdout.write(terminal_safe(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _as_json(answer: Answer, load_s: float) -> str:
    tokens = (answer.usage or {}).get("completion_tokens", 0)
    decode_s = answer.total_s - (answer.first_token_s or 0)
    return json.dumps(
        {
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "usage": answer.usage,
            "timing": {
                "load_s": round(load_s, 4),
                "first_token_s": answer.first_token_s and round(answer.first_token_s, 4),
                "total_s": round(answer.total_s, 4),
                "tokens_per_s": round((tokens - 1) / decode_s, 2) if tokens > 1 else None,
            },
        },
        ensure_ascii=False,
    )
