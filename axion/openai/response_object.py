"""A response of `/v1/responses`, as it begins and as it is told."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from axion.openai.chat_answer import TokenLogprob
from axion.openai.common import Usage
from axion.openai.fields import RequestModel, ResponseModel
from axion.openai.response_items import ItemStatus, new_id
from axion.openai.responses import ResponsesRequest, TextConfig


class OutputTextPart(ResponseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[JsonValue]
    logprobs: list[TokenLogprob]


class OutputMessage(ResponseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputTextPart]


class OutputFunctionCall(ResponseModel):
    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class ReasoningTextPart(ResponseModel):
    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(ResponseModel):
    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[JsonValue]
    content: list[ReasoningTextPart]


OutputItem = Annotated[
    OutputMessage | OutputFunctionCall | OutputReasoning, Field(discriminator="type")
]


class ResponseError(ResponseModel):
    code: Literal["server_error"]
    message: str


class IncompleteDetails(ResponseModel):
    reason: Literal["max_output_tokens"]


class InputTokensDetails(ResponseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(ResponseModel):
    reasoning_tokens: int


class ResponseUsage(ResponseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class Response(ResponseModel):
    """What became of a request.

    Attributes:
        created_at, completed_at: seconds since 1970.
        temperature, top_p: null where the request leaves them to the model's recommendation.
    """

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, JsonValue]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float | None
    text: dict[str, JsonValue]
    tool_choice: str | dict[str, JsonValue]
    tools: list[dict[str, JsonValue]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    user: str | None


class DeletedResponse(ResponseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseItemList(ResponseModel):
    object: Literal["list"]
    data: list[dict[str, JsonValue]]
    first_id: str | None
    last_id: str | None
    has_more: bool


def new_response(request: ResponsesRequest, model: str) -> Response:
    text = request.text or TextConfig()
    effort = request.reasoning.effort if request.reasoning else None
    return Response(
        id=new_id("resp"),
        object="response",
        created_at=int(time.time()),
        completed_at=None,
        status="in_progress",
        error=None,
        incomplete_details=None,
        model=model,
        output=[],
        usage=None,
        background=False,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=None,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning={"effort": effort, "summary": None},
        safety_identifier=request.safety_identifier,
        service_tier="default",
        store=request.keeps,
        temperature=request.temperature,
        text={"format": {"type": "text"}, **text.model_dump(by_alias=True, exclude_none=True)},
        tool_choice=_plain(request.tool_choice or "auto"),
        tools=[_plain(tool) for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=request.top_p,
        truncation="disabled",
        user=request.user,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, RequestModel):
        return value.model_dump(by_alias=True, exclude_none=True)
    return value


def response_usage(usage: Usage) -> ResponseUsage:
    details = usage.completion_tokens_details
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=usage.prompt_tokens_details.cached_tokens, cache_write_tokens=0
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(
            reasoning_tokens=details.reasoning_tokens if details is not None else 0
        ),
        total_tokens=usage.total_tokens,
    )
