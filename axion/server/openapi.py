"""`GET /openapi.json`: OpenAPI 3.1 from the types that validate, and `GET /docs` to read it."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from axion import __version__
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletion, ChatCompletionChunk
from axion.openai.common import ErrorBody
from axion.openai.completions import Completion, CompletionChunk, CompletionRequest
from axion.openai.embeddings import EmbeddingList, EmbeddingRequest
from axion.openai.explain import ExplainRequest, Explanation
from axion.openai.message_events import MessagesAnswer, MessagesEvent, MessageTokensCount
from axion.openai.messages import CountTokensRequest, MessagesErrorBody, MessagesRequest
from axion.openai.models import Model, ModelList
from axion.openai.rerank import RerankAnswer, RerankRequest, ScoreList, ScoreRequest
from axion.openai.response_events import ResponseEvent
from axion.openai.response_object import DeletedResponse, ResponseItemList
from axion.openai.response_object import Response as ResponseObject
from axion.openai.responses import ResponsesRequest
from axion.openai.tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
)
from axion.server.errors import json_response

_ERRORS = {
    400: "A field is missing, malformed, out of range or not supported.",
    404: "There is no such model, response or endpoint.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    429: "Too many requests are in flight; Retry-After says when to come back.",
    500: "A fault of the server; its log has the cause under the request's id.",
    503: "The model is not ready, or the server is shutting down.",
}
_SCHEMAS = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Operation:
    """What one method of one path takes and gives.

    Attributes:
        request, answer, events: types of the body, of the JSON answer, and of the events that
            come instead if the request says `stream: true`.
        ends_with_done: whether `[DONE]` is the last event.
        media_type: of an answer that is not JSON.
        error: type of the body of an error.
        example: a body to try, without the model's name.
    """

    tag: str
    summary: str
    answer: Any = str
    request: Any = None
    events: Any = None
    ends_with_done: bool = False
    media_type: str = "application/json"
    error: Any = ErrorBody
    parameters: tuple[dict[str, Any], ...] = ()
    example: dict[str, Any] | None = None


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


_Object = dict[str, JsonValue]
_MESSAGES = [{"role": "user", "content": "What is 27 + 15?"}]
_TOKENIZE = Operation(
    "tokens",
    "The tokens of a text or of a conversation",
    TokenizeAnswer,
    TokenizeRequest,
    example={"prompt": "Hello there"},
)
_DETOKENIZE = Operation(
    "tokens", "The text of tokens", DetokenizeAnswer, DetokenizeRequest, example={"tokens": [1, 2]}
)
_RERANK = Operation(
    "pooling",
    "Order documents by what they have to do with a query",
    RerankAnswer,
    RerankRequest,
    example={"query": "capital of France", "documents": ["Paris", "Rome"]},
)
_SCORE = Operation(
    "pooling",
    "Score pairs of texts",
    ScoreList,
    ScoreRequest,
    example={"text_1": "capital of France", "text_2": ["Paris", "Rome"]},
)

# Every route of the application; a test compares the two.
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("post", "/v1/chat/completions"): Operation(
        "generation",
        "Answer a conversation",
        ChatCompletion,
        ChatCompletionRequest,
        ChatCompletionChunk,
        ends_with_done=True,
        example={"messages": _MESSAGES},
    ),
    ("post", "/v1/completions"): Operation(
        "generation",
        "Continue a text",
        Completion,
        CompletionRequest,
        CompletionChunk,
        ends_with_done=True,
        example={"prompt": "Once upon a time", "max_tokens": 32},
    ),
    ("post", "/v1/embeddings"): Operation(
        "pooling",
        "Embed texts",
        EmbeddingList,
        EmbeddingRequest,
        example={"input": "Hello there"},
    ),
    ("post", "/v1/rerank"): _RERANK,
    ("post", "/v2/rerank"): _RERANK,
    ("post", "/rerank"): _RERANK,
    ("post", "/v1/score"): _SCORE,
    ("post", "/score"): _SCORE,
    ("post", "/v1/responses"): Operation(
        "responses",
        "Answer a conversation, in the shape of OpenAI's Responses API",
        ResponseObject,
        ResponsesRequest,
        ResponseEvent,
        example={"input": "What is 27 + 15?"},
    ),
    ("get", "/v1/responses/{id}"): Operation(
        "responses",
        "A stored response",
        ResponseObject,
        events=ResponseEvent,
        parameters=(
            _query("stream", {"type": "boolean"}, "its events again, if it has been streamed"),
            _query(
                "starting_after",
                {"type": "integer", "minimum": 0},
                "with stream: only the events behind that `sequence_number`",
            ),
        ),
    ),
    ("delete", "/v1/responses/{id}"): Operation(
        "responses", "Forget a stored response", DeletedResponse
    ),
    ("get", "/v1/responses/{id}/input_items"): Operation(
        "responses",
        "The conversation that a stored response answers",
        ResponseItemList,
        parameters=(
            _query("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "items on a page"),
            _query("order", {"enum": ["asc", "desc"]}, "desc, the latest first, unless given"),
            _query("after", {"type": "string"}, "the last item of the page before"),
        ),
    ),
    ("post", "/v1/messages"): Operation(
        "messages",
        "Answer a conversation, in the shape of Anthropic's Messages API",
        MessagesAnswer,
        MessagesRequest,
        MessagesEvent,
        error=MessagesErrorBody,
        example={"messages": _MESSAGES, "max_tokens": 64},
    ),
    ("post", "/v1/messages/count_tokens"): Operation(
        "messages",
        "Count the tokens of a prompt",
        MessageTokensCount,
        CountTokensRequest,
        error=MessagesErrorBody,
        example={"messages": _MESSAGES},
    ),
    ("post", "/tokenize"): _TOKENIZE,
    ("post", "/v1/tokenize"): _TOKENIZE,
    ("post", "/detokenize"): _DETOKENIZE,
    ("post", "/v1/detokenize"): _DETOKENIZE,
    ("post", "/v1/route/explain"): Operation(
        "models",
        "The engines of a model, and which of them would answer a request",
        Explanation,
        ExplainRequest,
        example={"request": {"messages": _MESSAGES, "n": 2}},
    ),
    ("get", "/v1/models"): Operation("models", "The models being served", ModelList),
    ("get", "/v1/models/{id}"): Operation("models", "One of them", Model),
    ("get", "/health"): Operation("server", "State of models, backends and machine", _Object),
    ("get", "/health/live"): Operation("server", "Whether the process runs", _Object),
    ("get", "/health/ready"): Operation("server", "Whether a model answers", _Object),
    ("get", "/metrics"): Operation("server", "Prometheus metrics", media_type="text/plain"),
    ("get", "/version"): Operation("server", "Axion's version", dict[Literal["version"], str]),
    ("get", "/"): Operation("server", "The endpoints there are", _Object),
    ("get", "/openapi.json"): Operation("server", "This description", _Object),
    ("get", "/docs"): Operation("server", "A page that shows it", media_type="text/html"),
}


@functools.cache
def openapi_document() -> dict[str, Any]:
    """The API as OpenAPI 3.1."""
    types = {
        (type_, mode)
        for operation in OPERATIONS.values()
        for type_, mode in (
            (operation.request, "validation"),
            (operation.answer, "serialization"),
            (operation.events, "serialization"),
            (operation.error, "serialization"),
        )
        if type_ is not None
    }
    keys = sorted(types, key=str)
    schemas, definitions = TypeAdapter.json_schemas(
        [(type_, mode, TypeAdapter(type_)) for type_, mode in keys],  # type: ignore[misc]
        ref_template=_SCHEMAS,
    )
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method] = _operation(path, operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Axion",
            "version": __version__,
            "summary": "One OpenAI-compatible server in front of every model a team runs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "headers": {
                "X-Request-ID": {
                    "schema": {"type": "string"},
                    "description": "the client's own, if it is short and plain",
                }
            },
        },
    }


def _operation(path: str, operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    headers = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}

    def response(description: str, content: dict[str, Any]) -> dict[str, Any]:
        return {"description": description, "headers": headers, "content": content}

    answer = schemas[operation.answer, "serialization"]
    content: dict[str, Any] = {operation.media_type: {"schema": answer}}
    if operation.events is not None:
        events = schemas[operation.events, "serialization"]
        content["text/event-stream"] = {"schema": _event(events, schemas, operation)}
    error = {"application/json": {"schema": schemas[operation.error, "serialization"]}}
    responses = {"200": response("The answer.", content)}
    names = re.findall(r"{(\w+)}", path)
    for status, meaning in _ERRORS.items():
        if operation.request is not None or (names and status in {400, 404}):
            responses[str(status)] = response(meaning, error)
    if path.startswith("/health"):
        responses["503"] = response("No model answers.", content)
    responses["default"] = response("Another error, such as a wrong method.", error)
    description: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ),
            *operation.parameters,
        ],
        "responses": responses,
    }
    if operation.request is not None:
        body: dict[str, Any] = {"schema": schemas[operation.request, "validation"]}
        if operation.example is not None:
            body["x-try"] = operation.example
        description["requestBody"] = {"required": True, "content": {"application/json": body}}
    return description


def _event(events: dict[str, Any], schemas: dict[Any, Any], operation: Operation) -> dict[str, Any]:
    """One server-sent event, which is what a schema of a stream describes before OpenAPI 3.2."""
    error = schemas[operation.error, "serialization"]
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [events, error]},
    }
    if operation.ends_with_done:
        data = {"anyOf": [{"const": "[DONE]"}, data]}
    return {
        "type": "object",
        "description": "With stream: true. An error ends the stream.",
        "properties": {"event": {"type": "string"}, "data": data},
        "required": ["data"],
    }


async def openapi(request: Request) -> Response:
    """The description itself."""
    return json_response(openapi_document())


_PAGE = Path(__file__).with_name("docs.html").read_text("utf-8")


def _content_security_policy() -> str:
    """Only the page's own style and script, and only this server to talk to."""

    def hash_of(tag: str) -> str:
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    return (
        f"default-src 'none'; style-src {hash_of('style')}; script-src {hash_of('script')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


_PAGE_HEADERS = {"content-security-policy": _content_security_policy()}


async def docs(request: Request) -> Response:
    """A page that shows the description and sends requests; it loads nothing from elsewhere."""
    return Response(_PAGE, media_type="text/html", headers=_PAGE_HEADERS)
