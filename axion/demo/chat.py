"""Writes a conversation as the text that the model reads, by the template in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from axion.demo import MODEL_DIR

END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
TEMPLATE = MODEL_DIR / "chat_template.jinja"


def render(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation.

    Args:
        messages: Messages in OpenAI's format.
        tools: The tools offered, in OpenAI's format.
        add_generation_prompt: Whether to end with the opening of the assistant's turn.
    """
    return _template(TEMPLATE).render(
        messages=messages,
        tools=list(tools) or None,
        add_generation_prompt=add_generation_prompt,
    )


@cache
def _template(path: Path) -> Template:
    # The same settings and functions that transformers gives to every chat template.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(path.read_text(encoding="utf-8"))


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
