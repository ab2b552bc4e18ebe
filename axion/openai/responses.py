"""`/v1/responses`: the request, and how it becomes one for chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from axion.errors import InvalidRequestError
from axion.openai.chat import MAX_MESSAGES, MAX_TOOLS, ChatCompletionRequest
from axion.openai.common import StreamableRequest
from axion.openai.fields import (
    FAIL_FAST,
    CacheSalt,
    NonEmptyText,
    Object,
    Priority,
    Refused,
    RequestModel,
    TokenCount,
    at_most,
    only_types,
    text_or_list,
)
from axion.openai.response_items import InputItem, InputMessage, chat_messages, new_id, with_ids
from axion.openai.translation import chat_request
from axion.types import MAX_LOGPROBS

_FUNCTIONS_ONLY = "a tool is a function"
_IS_FUNCTION = only_types(("function",), _FUNCTIONS_ONLY)
# Names of chat's fields in this API.
FIELD_NAMES = {
    r"messages\b.*": "input",
    r"max_(completion_)?tokens": "max_output_tokens",
    r"response_format(\.json_schema)?": "text.format",
    r"verbosity": "text.verbosity",
    r"reasoning_effort": "reasoning.effort",
    r"(tools\[\d+\]|tool_choice)\.function": r"\1",
}


class FunctionTool(RequestModel):
    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: Object | None = Field(None, description="a JSON schema")
    strict: bool | None = Field(None, description="the arguments follow the schema exactly")
    defer_loading: Annotated[Literal[False], Refused("tools are not searched", (False,))] | None = (
        None
    )
    allowed_callers: (
        Annotated[list[str], Refused("only the model calls tools", (["direct"],))] | None
    ) = None
    output_schema: Annotated[None, Refused("the output is the caller's")] = None
    async_: Annotated[bool, Refused("a call waits for its output", (False,))] | None = Field(
        None, alias="async"
    )


class ToolChoiceFunction(RequestModel):
    type: Literal["function"]
    name: NonEmptyText


Choosable = Annotated[ToolChoiceFunction, _IS_FUNCTION]


class AllowedTools(RequestModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[Choosable], Field(min_length=1), FAIL_FAST, at_most(MAX_TOOLS)]


def _choice_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "mode"
    if not isinstance(value, dict):
        return None
    return "allowed tools" if value.get("type") == "allowed_tools" else "function"


ToolChoice = Annotated[
    Annotated[
        Annotated[Literal["none", "auto", "required"], Tag("mode")]
        | Annotated[ToolChoiceFunction, Tag("function")]
        | Annotated[AllowedTools, Tag("allowed tools")],
        Discriminator(
            _choice_kind,
            custom_error_type="expected",
            custom_error_message="'none', 'auto', 'required', a function or allowed_tools",
        ),
    ],
    only_types(("function", "allowed_tools"), _FUNCTIONS_ONLY),
]


class PlainFormat(RequestModel):
    type: Literal["text", "json_object"]


class JsonSchemaFormat(RequestModel):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: Object = Field(alias="schema", description="a JSON schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(RequestModel):
    format: Annotated[PlainFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(RequestModel):
    effort: str | None = Field(None, description="as `reasoning_effort` of chat completions")
    summary: Annotated[None, Refused("reasoning is given in full, not summarised")] = None
    generate_summary: Annotated[None, Refused("reasoning is given in full, not summarised")] = None
    context: Annotated[None, Refused("earlier reasoning is not shown to the model again")] = None
    mode: Annotated[Literal["standard"], Refused("there is one mode", ("standard",))] | None = None


class ResponseStreamOptions(RequestModel):
    include_obfuscation: Literal[False] | None = Field(
        None, description="only false: events are not padded"
    )


MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class ResponsesRequest(StreamableRequest):
    input: Annotated[
        Annotated[NonEmptyText, Tag("text")]
        | Annotated[
            list[InputItem], Field(min_length=1), FAIL_FAST, at_most(MAX_MESSAGES), Tag("list")
        ],
        Discriminator(
            text_or_list,
            custom_error_type="expected",
            custom_error_message="a string or a list of items",
        ),
    ]
    instructions: str | None = Field(
        None,
        description="a system message before all others; not carried over to the next response",
    )
    previous_response_id: NonEmptyText | None = Field(
        None, description="go on from a stored response: its input and output come first"
    )
    store: bool | None = Field(None, description="keep the response; true unless it says false")
    max_output_tokens: TokenCount | None = Field(
        None, description="most tokens to generate, in tokens"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 takes the most likely token every time"
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="likeliest alternatives to report with each token"
    )
    include: (
        Annotated[
            list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]],
            at_most(8),
        ]
        | None
    ) = Field(
        None,
        description="log probabilities, or encrypted reasoning (which is plain here, so that "
        "nothing is added)",
    )
    tools: (
        Annotated[
            list[Annotated[FunctionTool, _IS_FUNCTION]],
            FAIL_FAST,
            at_most(MAX_TOOLS),
        ]
        | None
    ) = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    stream_options: ResponseStreamOptions | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], at_most(16)] | None = Field(
        None, description="given back with the response"
    )
    truncation: (
        Annotated[
            Literal["disabled"], Refused("a long conversation is not shortened", ("disabled",))
        ]
        | None
    ) = None
    background: (
        Annotated[Literal[False], Refused("there are no background responses", (False,))] | None
    ) = None
    service_tier: (
        Annotated[
            Literal["auto", "default"],
            Refused("there is one tier, 'auto' or 'default'", ("auto", "default")),
        ]
        | None
    ) = None

    # No effect on the answer, by OpenAI's own definition.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None

    # Extensions, with the names and meanings that vLLM gave them.
    cache_salt: CacheSalt | None = Field(
        None, description="only requests with the same salt share what caches hold"
    )
    priority: Priority | None = Field(
        None, description="where requests wait, a lower one comes first"
    )

    access_programs: Annotated[None, Refused("there are none")] = None
    context_management: Annotated[None, Refused("conversations are not compacted")] = None
    conversation: Annotated[None, Refused("use previous_response_id")] = None
    image: Annotated[None, Refused("this model takes text only")] = None
    max_tool_calls: Annotated[None, Refused("there are no built-in tools")] = None
    moderation: Annotated[None, Refused("there is no moderation model")] = None
    prompt: Annotated[None, Refused("there are no stored prompts, send input")] = None
    prompt_cache_options: Annotated[None, Refused("the prefix cache is automatic")] = None

    @property
    def keeps(self) -> bool:
        """Whether the response is to be stored."""
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs is not None or "message.output_text.logprobs" in (
            self.include or ()
        )

    def items(self) -> list[InputItem]:
        """The input as a list, every item with an id."""
        if isinstance(self.input, str):
            return [InputMessage(role="user", content=self.input, id=new_id("msg"))]
        return with_ids(self.input)

    def chat(self, items: list[InputItem]) -> ChatCompletionRequest:
        """The same request for chat; `items` is the whole conversation.

        Raises:
            InvalidRequestError: chat does not take a field; it is named as in this API.
        """
        messages = list(chat_messages(items))
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        if not messages:
            raise InvalidRequestError("input must have a message.", param="input")
        return chat_request(
            {
                "model": self.model,
                "messages": messages,
                "max_completion_tokens": self.max_output_tokens,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "logprobs": True if self.wants_logprobs else None,
                "top_logprobs": self.top_logprobs,
                "tools": [_chat_tool(tool) for tool in self.tools] if self.tools else None,
                "tool_choice": _chat_tool_choice(self.tool_choice),
                "parallel_tool_calls": self.parallel_tool_calls,
                "response_format": _response_format(self.text.format) if self.text else None,
                "verbosity": self.text.verbosity if self.text else None,
                "reasoning_effort": self.reasoning.effort if self.reasoning else None,
                "cache_salt": self.cache_salt,
                "priority": self.priority,
            },
            FIELD_NAMES,
        )


def _chat_tool(tool: FunctionTool) -> dict[str, Any]:
    fields = ("name", "description", "parameters", "strict")
    values = {name: getattr(tool, name) for name in fields}
    function = {name: value for name, value in values.items() if value is not None}
    return {"type": "function", "function": function}


def _chat_tool_choice(
    choice: str | ToolChoiceFunction | AllowedTools | None,
) -> str | dict[str, Any] | None:
    if isinstance(choice, ToolChoiceFunction):
        return {"type": "function", "function": {"name": choice.name}}
    if isinstance(choice, AllowedTools):
        tools = [_chat_tool_choice(tool) for tool in choice.tools]
        return {"type": choice.type, "allowed_tools": {"mode": choice.mode, "tools": tools}}
    return choice


def _response_format(format: PlainFormat | JsonSchemaFormat | None) -> dict[str, Any] | None:
    if isinstance(format, JsonSchemaFormat):
        schema = format.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
        return {"type": "json_schema", "json_schema": schema}
    return {"type": format.type} if format is not None else None
