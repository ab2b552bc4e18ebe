"""What all endpoints of a model share: from a request's body to the model's backend."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from axion.backends.base import InferenceBackend
from axion.errors import AxionError
from axion.openai.common import ModelRequest, ResponseModel, parse_request
from axion.server.body import read_json_body
from axion.server.disconnect import cancelled_on_disconnect
from axion.server.state import ServerState, server_state

RequestT = TypeVar("RequestT", bound=ModelRequest)


@dataclass(frozen=True)
class Call(Generic[RequestT]):
    """A valid request that has been let in, and all that is needed to answer it.

    Attributes:
        model: the served model's name.
        request_id: as the client knows it and the log has it.
        id: one that nobody else can choose, for the engine.
        arrived: when the request did, by `time.perf_counter`.
    """

    request: RequestT
    model: str
    backend: InferenceBackend
    state: ServerState
    request_id: str
    arrived: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class ModelEndpoint(Generic[RequestT]):
    """An ASGI endpoint. A subclass says what is particular to its kind of request.

    A request holds one of the server's places from its body's end to the answer's; it is
    cancelled when its client leaves.
    """

    request_type: type[RequestT]

    async def answer(self, call: Call[RequestT]) -> ResponseModel:
        """The whole answer."""
        raise NotImplementedError

    def error_body(self, error: AxionError) -> dict[str, Any]:
        """The JSON of an error."""
        return error.body()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = server_state(scope)
        # A place is taken once the body is there: slow clients must not hold the places.
        body = await read_json_body(scope, receive, state.settings.max_request_bytes)
        with state.admit():
            request = parse_request(self.request_type, body)
            served = state.registry.get(request.model)
            request_id, arrived = scope["state"]["request_id"], scope["state"]["arrived"]
            backend = served.require_ready()
            call = Call(request, served.name, backend, state, request_id, arrived)
            async with cancelled_on_disconnect(receive):
                await self.respond(call, scope, receive, send)

    async def respond(
        self, call: Call[RequestT], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send the answer."""
        answer = await self.answer(call)
        response = Response(answer.to_json(), media_type="application/json")
        await response(scope, receive, send)
