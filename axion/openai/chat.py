"""`POST /v1/chat/completions`: the request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator
from pydantic_core import from_json

from axion.errors import InvalidRequestError
from axion.openai.elsewhere import CHAT_FIELDS_ELSEWHERE
from axion.openai.fields import (
    FAIL_FAST,
    NonEmptyText,
    Object,
    Refused,
    RequestModel,
    TextOrParts,
    TokenCount,
    at_most,
    check_numbers,
    field_error,
    only_types,
    problem,
)
from axion.openai.structured import StructuredRequest
from axion.types import MAX_LOGPROBS

MAX_MESSAGES = 10_000
MAX_TOOLS = 128
_FUNCTIONS_ONLY = "a tool is a function"
_IS_FUNCTION = only_types(("function",), _FUNCTIONS_ONLY)


class TextPart(RequestModel):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Annotated[None, Refused("the prefix cache is automatic")] = None


Content = TextOrParts[Annotated[TextPart, only_types(("text",), "this model takes text only")]]


class SystemMessage(RequestModel):
    role: Literal["system"]
    content: Content
    name: str | None = None


class DeveloperMessage(RequestModel):
    role: Literal["developer"]
    content: Content
    name: str | None = None


class UserMessage(RequestModel):
    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(RequestModel):
    name: NonEmptyText
    arguments: str = Field(description="a JSON object, as text")

    @field_validator("arguments")
    @classmethod
    def _arguments_are_an_object(cls, text: str) -> str:
        try:
            arguments = from_json(text or "{}", allow_inf_nan=False)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise problem("must be the text of a JSON object")
        check_numbers(arguments)
        return text


class ToolCall(RequestModel):
    id: NonEmptyText
    type: Literal["function"]
    function: CalledFunction


EarlierCall = Annotated[ToolCall, _IS_FUNCTION]


class AssistantMessage(RequestModel):
    """An earlier answer: text, tool calls, or both.

    The fields of OpenAI's own answers that this server never fills may come back empty.
    """

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[EarlierCall], FAIL_FAST, at_most(MAX_TOOLS)] | None = None
    reasoning_content: str | None = Field(None, description="what the model thought before it")
    name: str | None = None
    refusal: Annotated[None, Refused("send the text as content")] = None
    audio: Annotated[None, Refused("this model takes text only")] = None
    annotations: (
        Annotated[list[JsonValue], Refused("this model takes text only", unless=([],))] | None
    ) = None
    function_call: Annotated[None, Refused("it is deprecated, use tool_calls")] = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise field_error("content", "is required unless there are tool_calls")
        return self


class ToolMessage(RequestModel):
    role: Literal["tool"]
    content: Content
    tool_call_id: NonEmptyText
    name: str | None = None


Message = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


class FunctionDefinition(RequestModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: Object | None = Field(None, description="a JSON schema")
    strict: bool | None = Field(
        None, description="calls follow the schema; one that cannot be enforced is refused"
    )


class Tool(RequestModel):
    type: Literal["function"]
    function: FunctionDefinition


ChatTool = Annotated[Tool, _IS_FUNCTION]


class ChosenFunction(RequestModel):
    name: NonEmptyText


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ChosenTool(RequestModel):
    # Hugging Face's own type has no more than the function.
    type: Literal["function"] = "function"
    function: ChosenFunction


Choosable = Annotated[ChosenTool, _IS_FUNCTION]


class AllowedTools(RequestModel):
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[Choosable],
        Field(min_length=1),
        FAIL_FAST,
        at_most(MAX_TOOLS),
    ]


class AllowedToolChoice(RequestModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _tool_choice_kind(value: Any) -> str | None:
    """By JSON type before validation; by class when a request is written as JSON again."""
    if isinstance(value, str):
        return "word"
    if isinstance(value, ChosenTool | AllowedToolChoice):
        return "function" if isinstance(value, ChosenTool) else "allowed tools"
    if not isinstance(value, dict):
        return None
    return "allowed tools" if "allowed_tools" in value else "function"


ToolChoice = Annotated[
    Annotated[
        Annotated[Literal["none", "auto", "required"], Tag("word")]
        | Annotated[ChosenTool, Tag("function")]
        | Annotated[AllowedToolChoice, Tag("allowed tools")],
        Discriminator(
            _tool_choice_kind,
            custom_error_type="expected",
            custom_error_message="'none', 'auto', 'required', a function or allowed_tools",
        ),
    ],
    only_types(("function", "allowed_tools"), _FUNCTIONS_ONLY),
]


class ChatCompletionRequest(StructuredRequest):
    advice = CHAT_FIELDS_ELSEWHERE

    messages: Annotated[list[Message], Field(min_length=1), FAIL_FAST, at_most(MAX_MESSAGES)]
    max_completion_tokens: TokenCount | None = Field(
        None, description="most tokens to generate; OpenAI's newer name of max_tokens"
    )
    logprobs: bool | None = Field(None, description="report the log probability of each token")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="likeliest alternatives to report with each token"
    )
    tools: Annotated[list[ChatTool], FAIL_FAST, at_most(MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = Field(
        None, description="which functions the model may or must call"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")

    # No effect on the answer, by OpenAI's own definition.
    metadata: Annotated[dict[str, str], at_most(16)] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: (
        Annotated[
            Literal["auto", "default"],
            Refused("there is one tier, 'auto' or 'default'", ("auto", "default")),
        ]
        | None
    ) = None
    store: Annotated[Literal[False], Refused("answers are not stored", (False,))] | None = None
    modalities: Annotated[list[str], Refused("this model gives text only", (["text"],))] | None = (
        None
    )

    audio: Annotated[None, Refused("this model gives text only")] = None
    functions: Annotated[None, Refused("it is deprecated, use tools")] = None
    function_call: Annotated[None, Refused("it is deprecated, use tool_choice")] = None
    moderation: Annotated[None, Refused("there is no moderation model")] = None
    prediction: Annotated[None, Refused("predicted outputs are not used")] = None
    prompt_cache_options: Annotated[None, Refused("the prefix cache is automatic")] = None
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="only where the model's chat template reads it"
    )
    verbosity: Annotated[None, Refused("this model has no levels of verbosity")] = None
    web_search_options: Annotated[None, Refused("there is no web search")] = None

    # Extensions, with the names and meanings that vLLM gave them.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="go on writing the last message; needs add_generation_prompt: false"
    )
    chat_template_kwargs: Annotated[Object, at_most(64)] | None = Field(
        None, description="variables for the model's chat template"
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InvalidRequestError(
                "max_tokens and max_completion_tokens differ; send only max_completion_tokens.",
                param="max_tokens",
            )
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
        self._check_tool_choice()
        if self.continue_final_message and self.add_generation_prompt is not False:
            raise InvalidRequestError(
                "continue_final_message needs add_generation_prompt: false.",
                param="continue_final_message",
            )
        self._check_tool_results()
        return self

    def _check_tool_results(self) -> None:
        """Raises:
        InvalidRequestError: a tool message answers no call of the assistant before it.
        """
        called: set[str] = set()
        for i, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage):
                called = {call.id for call in message.tool_calls or ()}
            elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
                raise InvalidRequestError(
                    f"messages[{i}].tool_call_id must be the id of a call in the tool_calls of the "
                    "assistant's message before it.",
                    param=f"messages[{i}].tool_call_id",
                )

    def _check_tool_choice(self) -> None:
        if self.tool_choice in (None, "none", "auto"):
            return
        if not self.tools:
            raise InvalidRequestError("tool_choice needs tools.", param="tool_choice")
        known = {tool.function.name for tool in self.tools}
        for name in self._chosen_names or ():
            if name not in known:
                raise InvalidRequestError(
                    f"tool_choice names {name[:64]!r}, which is not among the tools.",
                    param="tool_choice",
                )

    @property
    def _chosen_names(self) -> set[str] | None:
        """The functions that tool_choice restricts calls to; None if it does not."""
        match self.tool_choice:
            case ChosenTool(function=function):
                return {function.name}
            case AllowedToolChoice(allowed_tools=allowed):
                return {tool.function.name for tool in allowed.tools}
        return None

    @property
    def callable_tools(self) -> dict[int, Tool]:
        """The tools that the model may call, by their place in the request."""
        if not self.uses_tools:
            return {}
        names = self._chosen_names
        return {
            i: tool
            for i, tool in enumerate(self.tools or ())
            if names is None or tool.function.name in names
        }

    @property
    def requires_call(self) -> bool:
        """Whether the answer must be calls."""
        match self.tool_choice:
            case AllowedToolChoice(allowed_tools=allowed):
                return allowed.mode == "required"
        return self.tool_choice not in (None, "none", "auto")

    @property
    def max_one_call(self) -> bool:
        return self.parallel_tool_calls is False or isinstance(self.tool_choice, ChosenTool)

    @property
    def uses_tools(self) -> bool:
        """Whether the model may call tools: some are given and tool_choice is not none."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def callable_functions(self) -> dict[str, dict[str, Any]] | None:
        """The schemas of the functions that the model may call; None if it may call none."""
        if not self.uses_tools:
            return None
        return {tool.function.name: tool.function.parameters or {} for tool in self.tools or ()}

    @property
    def final_text(self) -> str:
        """The text of the last message."""
        content = self.messages[-1].content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def template_messages(self) -> list[dict[str, Any]]:
        """The messages for a chat template; what was not given is absent.

        A tool's result has the name of the function, which some templates want.
        """
        names: dict[str, str] = {}
        messages = [message.model_dump(exclude_none=True) for message in self.messages]
        for message in messages:
            for call in message.get("tool_calls", ()):
                names[call["id"]] = call["function"]["name"]
            if message["role"] == "tool":
                message.setdefault("name", names[message["tool_call_id"]])
        return messages

    def template_tools(self) -> list[dict[str, Any]] | None:
        """The tools for a chat template; none if the model may not call them."""
        if not self.uses_tools:
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools or ()]
