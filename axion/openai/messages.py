"""What `POST /v1/messages` takes, in the shape of Anthropic's Messages API, and the chat it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from axion.errors import AxionError
from axion.openai.chat import MAX_MESSAGES, MAX_TOOLS, ChatCompletionRequest
from axion.openai.common import ModelRequest, StreamableRequest
from axion.openai.fields import (
    FAIL_FAST,
    MAX_TOKEN_ID,
    CacheSalt,
    NonEmptyText,
    Object,
    Refused,
    RequestModel,
    ResponseModel,
    StopString,
    TokenCount,
    at_most,
    field_error,
    only_types,
    text_or_list,
)
from axion.openai.translation import FieldNames, chat_request
from axion.types import MAX_STOP_STRINGS

_TEXT_ONLY = "this model takes text only"
_OWN_TOOLS_ONLY = "there are no built-in tools, describe one of your own"
_NO_TOOLSETS = "there are no toolsets"
# Names of chat's fields in this API.
FIELD_NAMES = {
    r"max_completion_tokens": "max_tokens",
    r"messages\b.*": "messages",
    r"stop\b": "stop_sequences",
    r"tools\[(\d+)\]\.function\.parameters": r"tools[\1].input_schema",
    r"(tools\[\d+\]|tool_choice)\.function": r"\1",
    r"parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    r"response_format(\.json_schema)?": "output_config.format",
    r"reasoning_effort": "output_config.effort",
}
# Anthropic's names of the statuses; any other 4xx is an invalid request, any other 5xx its own.
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: AxionError) -> dict[str, Any]:
    """Anthropic's error body: `{"type": "error", "error": {"type", "message"}}`."""
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = _ERROR_TYPES.get(error.status, other)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


class MessagesErrorDetail(ResponseModel):
    type: str
    message: str


class MessagesErrorBody(ResponseModel):
    type: Literal["error"]
    error: MessagesErrorDetail


class CacheControl(RequestModel):
    """Accepted; the prefix cache is automatic."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(RequestModel):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[JsonValue], Refused("there are no citations", ([],))] | None = None


TextBlocks = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[
        list[Annotated[TextBlock, only_types(("text",), _TEXT_ONLY)]], FAIL_FAST, Tag("list")
    ],
    Discriminator(
        text_or_list,
        custom_error_type="expected",
        custom_error_message="a string or a list of text blocks",
    ),
]


class ToolUseBlock(RequestModel):
    type: Literal["tool_use"]
    id: NonEmptyText
    name: NonEmptyText
    input: Object
    cache_control: CacheControl | None = None
    caller: Annotated[JsonValue, Refused("only the model calls tools", ({"type": "direct"},))] = (
        None
    )
    toolset_name: Annotated[None, Refused(_NO_TOOLSETS)] = None


class ToolResultBlock(RequestModel):
    type: Literal["tool_result"]
    tool_use_id: NonEmptyText
    content: TextBlocks | None = None
    is_error: bool | None = Field(None, description='true puts "Error: " before the content')
    cache_control: CacheControl | None = None
    toolset_name: Annotated[None, Refused(_NO_TOOLSETS)] = None


class ThinkingBlock(RequestModel):
    """Earlier reasoning. It is accepted and not shown to the model again."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(RequestModel):
    """As `thinking`."""

    type: Literal["redacted_thinking"]
    data: str


ContentBlock = Annotated[
    Annotated[
        TextBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock,
        Field(discriminator="type"),
    ],
    only_types(("text", "tool_use", "tool_result", "thinking", "redacted_thinking"), _TEXT_ONLY),
]
MessageContent = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[ContentBlock], Field(min_length=1), FAIL_FAST, Tag("list")],
    Discriminator(
        text_or_list,
        custom_error_type="expected",
        custom_error_message="a string or a list of content blocks",
    ),
]


_ROLES = {"tool_use": "assistant", "tool_result": "user"}


class InputTurn(RequestModel):
    """A message. Results of tools come in a user's, uses of tools in an assistant's."""

    role: Literal["user", "assistant", "system"]
    content: MessageContent

    @model_validator(mode="after")
    def _blocks_fit_the_role(self) -> InputTurn:
        for block in self.content if isinstance(self.content, list) else ():
            role = _ROLES.get(block.type, self.role)
            if role != self.role:
                raise field_error(
                    "content",
                    f"of role {self.role!r} has a {block.type} block, which belongs to {role!r}",
                )
        return self


class MessagesTool(RequestModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    input_schema: Object = Field(description="a JSON schema")
    type: Literal["custom"] | None = None
    strict: bool | None = Field(None, description="the input follows the schema exactly")
    cache_control: CacheControl | None = None
    allowed_callers: (
        Annotated[list[str], Refused("only the model calls tools", (["direct"],))] | None
    ) = None
    defer_loading: Annotated[Literal[False], Refused("tools are not searched", (False,))] | None = (
        None
    )
    eager_input_streaming: bool | None = Field(None, description="accepted; has no effect")
    input_examples: Annotated[None, Refused("chat templates have no place for them")] = None


class MessagesToolChoice(RequestModel):
    type: Literal["auto", "any", "tool", "none"]
    name: NonEmptyText | None = Field(None, description="the tool to use, with type tool")
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _type_tool_has_a_name(self) -> MessagesToolChoice:
        if (self.name is not None) != (self.type == "tool"):
            raise field_error("name", "is required with type 'tool', and only with it")
        return self


class Metadata(RequestModel):
    """Accepted; has no effect on the answer."""

    user_id: str | None = None


class Thinking(RequestModel):
    type: Annotated[
        Literal["adaptive", "disabled"],
        Refused(
            "thinking has no budget here; 'adaptive' leaves it to the model, 'disabled' ends it",
            ("adaptive", "disabled"),
        ),
    ]
    budget_tokens: Annotated[None, Refused("thinking has no budget here")] = None
    display: (
        Annotated[Literal["summarized"], Refused("thinking is shown", ("summarized",))] | None
    ) = None


class OutputFormat(RequestModel):
    type: Literal["json_schema"]
    schema_: Object = Field(alias="schema", description="a JSON schema")


class OutputConfig(RequestModel):
    effort: str | None = Field(None, description="as `reasoning_effort` of chat completions")
    format: OutputFormat | None = None


class CountTokensRequest(ModelRequest):
    """The fields that decide how long the prompt is."""

    messages: Annotated[list[InputTurn], Field(min_length=1), FAIL_FAST, at_most(MAX_MESSAGES)]
    system: TextBlocks | None = Field(None, description="a system message before all others")
    tools: (
        Annotated[
            list[Annotated[MessagesTool, only_types(("custom",), _OWN_TOOLS_ONLY)]],
            FAIL_FAST,
            at_most(MAX_TOOLS),
        ]
        | None
    ) = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Annotated[Literal["standard"], Refused("there is one speed", ("standard",))] | None = (
        None
    )
    user_profile_id: Annotated[None, Refused("there are no user profiles")] = None
    workspace_id: Annotated[None, Refused("there are no workspaces")] = None
    context_management: Annotated[None, Refused("conversations are not edited")] = None
    mcp_servers: Annotated[None, Refused("there are no MCP servers")] = None

    @property
    def field_names(self) -> FieldNames:
        """What this API calls the fields of a chat request."""
        if self.output_config is not None and self.output_config.effort is not None:
            return FIELD_NAMES
        return FIELD_NAMES | {"reasoning_effort": "thinking"}

    def chat(self) -> ChatCompletionRequest:
        """The same request for chat.

        Raises:
            InvalidRequestError: chat does not take a field; it is named as in this API.
        """
        return chat_request(self._chat_fields(), self.field_names)

    def _chat_fields(self) -> dict[str, Any]:
        messages = [message for turn in self.messages for message in _chat_messages(turn)]
        if self.system:
            messages.insert(0, {"role": "system", "content": _chat_text(self.system)})
        fields: dict[str, Any] = {"model": self.model, "messages": messages}
        last = self.messages[-1]
        if last.role == "assistant":
            # The model goes on writing it: what Anthropic calls a prefill.
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        if self.tools:
            fields["tools"] = [_chat_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            fields["tool_choice"] = _chat_tool_choice(self.tool_choice)
            if self.tool_choice.disable_parallel_tool_use:
                fields["parallel_tool_calls"] = False
        if self.thinking is not None and self.thinking.type == "disabled":
            fields["reasoning_effort"] = "none"
        if self.output_config is not None:
            if self.output_config.effort is not None:
                fields["reasoning_effort"] = self.output_config.effort
            if self.output_config.format is not None:
                schema = {"name": "answer", "schema": self.output_config.format.schema_}
                fields["response_format"] = {
                    "type": "json_schema",
                    "json_schema": schema | {"strict": True},
                }
        return fields


class MessagesRequest(CountTokensRequest, StreamableRequest):
    max_tokens: TokenCount = Field(description="most tokens to generate, in tokens")
    stop_sequences: Annotated[list[StopString], FAIL_FAST, at_most(MAX_STOP_STRINGS)] | None = (
        Field(None, description="strings that end the answer, not part of it")
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 takes the most likely token every time"
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)] | None = Field(None, description="0 is off")
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = Field(
        None, description="accepted; there is one tier"
    )
    # vLLM's extension of OpenAI's requests.
    cache_salt: CacheSalt | None = Field(
        None, description="only requests with the same salt share what caches hold"
    )
    container: Annotated[None, Refused("there are no containers")] = None
    diagnostics: Annotated[None, Refused("there are no diagnostics")] = None
    inference_geo: Annotated[None, Refused("there is one place, this server's")] = None

    def _chat_fields(self) -> dict[str, Any]:
        return super()._chat_fields() | {
            "max_completion_tokens": self.max_tokens,
            "stop": self.stop_sequences or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "cache_salt": self.cache_salt,
        }


def _chat_messages(turn: InputTurn) -> Iterator[dict[str, Any]]:
    """A message for chat; results of tools are messages of their own, in their order."""
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    texts: list[TextBlock] = []
    calls: list[dict[str, Any]] = []
    for block in turn.content:
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": json.dumps(block.input)}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ToolResultBlock):
            if texts:
                yield {"role": turn.role, "content": _chat_text(texts)}
                texts = []
            content = _chat_text(block.content or "")
            yield {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "content": _as_error(content) if block.is_error else content,
            }
    if calls:
        message = {"role": turn.role, "tool_calls": calls}
        yield message | {"content": _chat_text(texts)} if texts else message
    elif texts:
        yield {"role": turn.role, "content": _chat_text(texts)}


def _chat_text(content: str | list[TextBlock]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if len(content) <= 1:
        return content[0].text if content else ""
    return [{"type": "text", "text": block.text} for block in content]


def _as_error(content: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return f"Error: {content}"
    return [{"type": "text", "text": "Error:"}, *content]


def _chat_tool(tool: MessagesTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _chat_tool_choice(choice: MessagesToolChoice) -> str | dict[str, Any]:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return {"any": "required"}.get(choice.type, choice.type)
