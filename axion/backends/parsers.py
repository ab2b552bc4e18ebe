"""The names that engines have for the ways in which models write tool calls and reasoning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from axion.text.answer_format import answer_format
from axion.text.chat_template import template_source


class Parsers(NamedTuple):
    """An engine's names.

    Attributes:
        tools: by the name of the class in `axion.text.tool_calls`.
        reasoning: by that name, by a variable of the template, or by the opening tag; the first
            of these that there is a name for counts.
    """

    tools: Mapping[str, str]
    reasoning: Mapping[str, str]


class Chosen(NamedTuple):
    """The names for one model; None where the engine has none."""

    tools: str | None = None
    reasoning: str | None = None


def parsers_of(path: Path, names: Parsers) -> Chosen:
    """What an engine is to read the answers of the model in the folder `path` by."""
    template = template_source(path)
    if not template:
        return Chosen()
    format = answer_format(template)
    family = format.tool_calls.__name__
    tools = names.tools.get(family) if "tools" in template else None
    if not format.reasons:
        return Chosen(tools)
    switch = "enable_thinking" if "enable_thinking" in template else ""
    tag = format.reasoning.begin if format.reasoning is not None else ""
    found = (names.reasoning.get(key) for key in (family, switch, tag))
    return Chosen(tools, next(filter(None, found), None))
