"""What `/v1/responses` takes for input: items, which are stored and listed, and are a chat's
messages."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, TypeAdapter

from axion.openai.chat import CalledFunction
from axion.openai.fields import (
    NonEmptyText,
    Refused,
    RequestModel,
    TextOrParts,
    field_error,
    only_types,
)

_TEXT_ONLY = "this model takes text only"
_ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _is_known_item(item: Any) -> Any:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if isinstance(kind, str) and kind not in _ITEM_TYPES:
        known = ", ".join(map(repr, _ITEM_TYPES))
        hint = ": send the item itself" if kind == "item_reference" else ""
        raise field_error("type", f"must be one of {known}, got {kind[:60]!r}{hint}")
    return item


def _item_kind(item: Any) -> str | None:
    """By the item's type; a message may leave its out. Asked again when items are written."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", "")
    return "message" if kind is None else kind if isinstance(kind, str) else None


class InputText(RequestModel):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Annotated[None, Refused("the prefix cache is automatic")] = None


class OutputText(RequestModel):
    """Text of an earlier answer, as this server gave it."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[JsonValue], Refused(_TEXT_ONLY, ([],))] | None = None
    logprobs: list[JsonValue] | None = Field(None, description="accepted; has no effect")


InputContent = TextOrParts[
    Annotated[
        InputText | OutputText,
        Field(discriminator="type"),
        only_types(("input_text", "output_text"), _TEXT_ONLY),
    ]
]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputMessage(RequestModel):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: InputContent
    id: NonEmptyText | None = None
    status: ItemStatus | None = None
    phase: Annotated[
        Literal["commentary", "final_answer"] | None, Field(description="accepted; has no effect")
    ] = None


class InputFunctionCall(CalledFunction):
    type: Literal["function_call"]
    call_id: NonEmptyText
    id: NonEmptyText | None = None
    status: ItemStatus | None = None
    namespace: Annotated[None, Refused("tools have no namespaces")] = None
    caller: Annotated[None, Refused("only the model calls tools")] = None
    async_: Annotated[bool, Refused("a call waits for its output", (False,))] | None = Field(
        None, alias="async"
    )


class InputFunctionCallOutput(RequestModel):
    type: Literal["function_call_output"]
    call_id: NonEmptyText
    output: InputContent
    id: NonEmptyText | None = None
    status: ItemStatus | None = None
    name: str | None = Field(None, description="accepted; call_id says it already")
    namespace: Annotated[None, Refused("tools have no namespaces")] = None
    caller: Annotated[None, Refused("only the model calls tools")] = None


class InputReasoning(RequestModel):
    """Earlier reasoning. It is accepted and not shown to the model again."""

    type: Literal["reasoning"]
    id: NonEmptyText | None = None
    summary: list[JsonValue] | None = None
    content: list[JsonValue] | None = None
    encrypted_content: Annotated[None, Refused("reasoning is not encrypted here")] = None
    status: ItemStatus | None = None


InputItem = Annotated[
    Annotated[
        Annotated[InputMessage, Tag("message")]
        | Annotated[InputFunctionCall, Tag("function_call")]
        | Annotated[InputFunctionCallOutput, Tag("function_call_output")]
        | Annotated[InputReasoning, Tag("reasoning")],
        Discriminator(
            _item_kind,
            custom_error_type="expected",
            custom_error_message="a message, or an item of another type in `type`",
        ),
    ],
    BeforeValidator(_is_known_item),
]
_stored_items: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])

_ID_PREFIXES = {
    InputMessage: "msg",
    InputFunctionCall: "fc",
    InputFunctionCallOutput: "fco",
    InputReasoning: "rs",
}


def with_ids(items: list[InputItem]) -> list[InputItem]:
    """The items, of which each has an id."""
    return [
        item.model_copy(update={"id": item.id or new_id(_ID_PREFIXES[type(item)])})
        for item in items
    ]


def chat_messages(items: list[InputItem]) -> Iterator[dict[str, Any]]:
    """The conversation for chat: calls that follow one another are one assistant message's."""
    assistant: dict[str, Any] | None = None
    for item in items:
        if isinstance(item, InputReasoning):
            continue
        if isinstance(item, InputFunctionCall):
            assistant = assistant or {"role": "assistant"}
            call = {"name": item.name, "arguments": item.arguments}
            assistant.setdefault("tool_calls", []).append(
                {"id": item.call_id, "type": "function", "function": call}
            )
            continue
        if assistant is not None:
            yield assistant
            assistant = None
        if isinstance(item, InputFunctionCallOutput):
            content = _chat_content(item.output)
            yield {"role": "tool", "tool_call_id": item.call_id, "content": content}
        elif item.role == "assistant":
            assistant = {"role": "assistant", "content": _chat_content(item.content)}
        else:
            yield {"role": item.role, "content": _chat_content(item.content)}
    if assistant is not None:
        yield assistant


def _chat_content(content: str | list[InputText | OutputText]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if len(content) == 1:
        return content[0].text
    return [{"type": "text", "text": part.text} for part in content]


def dump_items(items: list[InputItem]) -> bytes:
    """The items as JSON; `load_items` reads it."""
    return _stored_items.dump_json(items, by_alias=True, exclude_none=True)


def load_items(data: bytes) -> list[InputItem]:
    """Items from their JSON, and from that of a response's output."""
    return _stored_items.validate_json(data)


def list_items(items: list[InputItem]) -> list[dict[str, Any]]:
    """The items as the API lists them: contents as parts, with ids and statuses."""
    return [_listed(item) for item in items]


def _listed(item: InputItem) -> dict[str, Any]:
    fields: dict[str, Any] = item.model_dump(by_alias=True, exclude_none=True)
    fields |= {"status": item.status or "completed"}
    if isinstance(item, InputReasoning):
        fields.setdefault("summary", [])
    if isinstance(item, InputMessage):
        fields["type"] = "message"
        kind = "output_text" if item.role == "assistant" else "input_text"
        texts = [item.content] if isinstance(item.content, str) else [p.text for p in item.content]
        fields["content"] = [_listed_part(kind, text) for text in texts]
    return fields


def _listed_part(kind: str, text: str) -> dict[str, Any]:
    part = {"type": kind, "text": text}
    return part | {"annotations": []} if kind == "output_text" else part
