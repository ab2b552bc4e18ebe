"""Chat templates of Mistral's models that come with `tekken.json` and no template of their own.

The version in that file decides the format of a chat, which mistral-common defines
(github.com/mistralai/mistral-common, `encode_chat_completion`); the tests compare the tokens.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from axion.text.tokenizer_formats.tekken import ChatFormat


class _System(NamedTuple):
    """Where system prompts go.

    Attributes:
        chat: the messages that are written in turn.
        alone: one of them that is a system prompt.
        in_user: what begins a user message.
    """

    chat: str
    alone: str
    in_user: str


class _Version(NamedTuple):
    """What differs between the formats.

    Attributes:
        system: where system prompts go.
        tools_at: the user message that the tools stand before.
        calls: of an assistant's message.
        results: of a message with one.
    """

    system: _System
    tools_at: str
    calls: str
    results: str


_SYSTEM_ALONE = _System("messages", "[SYSTEM_PROMPT]{{ message.content }}[/SYSTEM_PROMPT]", "")
_SYSTEM_IN_LAST_USER = _System(
    'messages | rejectattr("role", "equalto", "system") | list',
    "",
    """
        {%- if loop.index0 == state.last -%}
            {%- for prompt in messages if prompt.role == "system" and prompt.content -%}
                {{- prompt.content ~ "\\n\\n" -}}
            {%- endfor -%}
        {%- endif -%}""",
)

_CALL_LIST = """[TOOL_CALLS][
    {%- for call in message.tool_calls -%}
        {{- '{"name": ' ~ (call.function.name | tojson) ~ ', "arguments": ' -}}
        {{- call.function.arguments | tojson -}}
        {{- ', "id": ' ~ (call.id[-9:] | tojson) ~ '}' ~ ('' if loop.last else ', ') -}}
    {%- endfor -%}
]"""
_CALLS_WITH_IDS = """
    {%- for call in message.tool_calls -%}
        [TOOL_CALLS]{{ call.function.name }}[CALL_ID]{{ call.id[-9:] }}[ARGS]
        {{- call.function.arguments | tojson -}}
    {%- endfor -%}
"""
_CALLS = """
    {%- for call in message.tool_calls -%}
        [TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}
    {%- endfor -%}
"""
# JSON goes in as what it says, other text as a string.
_RESULT_OBJECT = """
    {%- set text = message.content | trim -%}
    {%- set ends = text[:1] ~ text[-1:] -%}
    {%- set is_json = ends in ['{}', '[]'] or text in ['true', 'false', 'null']
        or text == text | int | string or text == text | float | string -%}
    [TOOL_RESULTS]{"content": {{ text if is_json else message.content | tojson -}}
    , "call_id": {{ message.tool_call_id[-9:] | tojson }}}[/TOOL_RESULTS]
"""
_RESULT_WITH_ID = """[TOOL_RESULTS]{{ message.tool_call_id[-9:] }}[TOOL_CONTENT]
    {{- message.content }}[/TOOL_RESULTS]"""
_RESULT = "[TOOL_RESULTS]{{ message.content }}[/TOOL_RESULTS]"
# The results of a row of messages in the order of their calls.
_IN_ORDER = """
    {%- set state.results = state.results + [message] -%}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}
        {%- for id in state.ids -%}
            {%- for message in state.results if message.tool_call_id == id -%}
                @RESULT@
            {%- endfor -%}
        {%- endfor -%}
        {%- for message in state.results if message.tool_call_id not in state.ids -%}
            @RESULT@
        {%- endfor -%}
        {%- set state.results = [] -%}
    {%- endif -%}
"""

_VERSIONS = {
    "v3": _Version(_SYSTEM_IN_LAST_USER, "last", _CALL_LIST, _RESULT_OBJECT),
    "v7": _Version(_SYSTEM_ALONE, "last", _CALL_LIST, _RESULT_WITH_ID),
    "v11": _Version(
        _SYSTEM_ALONE, "last", _CALLS_WITH_IDS, _IN_ORDER.replace("@RESULT@", _RESULT_WITH_ID)
    ),
    "v13": _Version(_SYSTEM_ALONE, "first", _CALLS, _IN_ORDER.replace("@RESULT@", _RESULT)),
}
_VERSIONS["v15"] = _VERSIONS["v13"]  # and the settings

_THOUGHT = """
        {%- if message.reasoning_content -%}
            [THINK]{{ message.reasoning_content }}[/THINK]
        {%- endif -%}"""

# Where the tokenizer lists levels of reasoning, in the place of the tools.
_SETTINGS = """
        {%- if loop.index0 == state.@TOOLS_AT@ -%}
            {%- set effort = reasoning_effort or @DEFAULT@ -%}
            {%- if effort not in @EFFORTS@ -%}
                {{- raise_exception("reasoning_effort is one of " ~ @EFFORTS@ | join(", ")
                    ~ " for this model.") -}}
            {%- endif -%}
            {{- '[MODEL_SETTINGS]{"reasoning_effort": "' ~ effort ~ '"}[/MODEL_SETTINGS]' -}}
        {%- endif -%}"""

_TEMPLATE = """
{%- set state = namespace(first=none, last=none, ids=[], results=[]) -%}
{%- set chat = @CHAT@ -%}
{%- for message in chat -%}
    {%- if message.role == "user" and (loop.first or loop.previtem.role != "user") -%}
        {%- set state.first = loop.index0 if state.first is none else state.first -%}
        {%- set state.last = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in chat -%}
    {%- if message.role == "user" -%}
        {%- if loop.index0 == state.@TOOLS_AT@ and tools -%}
            {{- "[AVAILABLE_TOOLS][" -}}
            {%- for tool in tools -%}
                {%- set function = tool.function -%}
                {{- {"type": "function", "function": {"name": function.name,
                     "description": function.description or "",
                     "parameters": function.parameters or {}}} | tojson -}}
                {{- "" if loop.last else ", " -}}
            {%- endfor -%}
            {{- "][/AVAILABLE_TOOLS]" -}}
        {%- endif -%}
        @SETTINGS@
        {{- "\\n\\n" if not loop.first and loop.previtem.role == "user" else "[INST]" -}}
        @SYSTEM_IN_USER@
        {{- message.content -}}
        {{- "" if not loop.last and loop.nextitem.role == "user" else "[/INST]" -}}
    {%- elif message.role == "system" -%}
        @SYSTEM_ALONE@
    {%- elif message.role == "assistant" -%}
        @THOUGHT@
        {{- (message.content or "").rstrip(" ") -}}
        {%- if message.tool_calls -%}
            {%- set state.ids = message.tool_calls | map(attribute="id") | list -%}
            @CALLS@
        {%- endif -%}
        {{- eos_token -}}
    {%- elif message.role == "tool" -%}
        @RESULTS@
    {%- else -%}
        {{- raise_exception("This model knows no messages with the role " ~ message.role ~ ".") -}}
    {%- endif -%}
{%- endfor -%}
"""


def mistral_template(format: ChatFormat) -> str | None:
    """The chat template of a tokenizer's format; None of a version that is not known."""
    if (rules := _VERSIONS.get(format.version)) is None:
        return None
    effort = format.reasoning_effort
    parts = {
        "@SETTINGS@": _SETTINGS if effort is not None else "",
        "@DEFAULT@": json.dumps(effort and effort.default),
        "@EFFORTS@": json.dumps(effort and effort.values),
        "@CHAT@": rules.system.chat,
        "@SYSTEM_IN_USER@": rules.system.in_user,
        "@SYSTEM_ALONE@": rules.system.alone,
        "@TOOLS_AT@": rules.tools_at,
        "@THOUGHT@": _THOUGHT if format.thinks else "",
        "@CALLS@": rules.calls,
        "@RESULTS@": rules.results,
    }
    template = _TEMPLATE
    for place, part in parts.items():
        template = template.replace(place, part)
    return template
