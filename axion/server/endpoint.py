"""What all endpoints of a model share: from a request's body to the model's backend."""

from __future__ import annotations

import asyncio
import functools
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from axion.errors import AxionError
from axion.openai.common import ModelRequest
from axion.openai.fields import ResponseModel
from axion.openai.parsing import parse_request
from axion.router.route import Route
from axion.server.body import SMALL_BODY_BYTES, read_json_body
from axion.server.disconnect import cancelled_on_disconnect
from axion.server.state import ServerState, server_state

# One thread: parsing holds the interpreter, so that more would only slow all others down.
_parser = ThreadPoolExecutor(1, "parser")

RequestT = TypeVar("RequestT", bound=ModelRequest)
ResultT = TypeVar("ResultT")
Arguments = ParamSpec("Arguments")


def model_response(answer: ResponseModel) -> Response:
    """An answer as a JSON response."""
    return Response(answer.to_json(), media_type="application/json")


async def off_loop(
    num_bytes: int,
    parse: Callable[Arguments, ResultT],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> ResultT:
    """`parse(*args, **kwargs)`; where it has more than a little to do, the event loop goes on."""
    if num_bytes <= SMALL_BODY_BYTES:  # less than a millisecond
        return parse(*args, **kwargs)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_parser, functools.partial(parse, *args, **kwargs))


def _telling_engine(route: Route, send: Send) -> Send:
    """`send`, with a header that says which engine answers."""

    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start" and route.engine:
            header = (b"x-axion-backend", route.engine.encode())
            message["headers"] = [*message["headers"], header]
        await send(message)

    return telling


@dataclass(frozen=True)
class Call(Generic[RequestT]):
    """A valid request that has been let in, and all that is needed to answer it.

    Attributes:
        num_bytes: of its body.
        model: the served model's name.
        request_id: as the client knows it and the log has it.
        id: one that nobody else can choose, for the engine.
        arrived: when the request did, by `time.perf_counter`.
    """

    request: RequestT
    num_bytes: int
    headers: Headers
    model: str
    backend: Route
    state: ServerState
    request_id: str
    arrived: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class ModelEndpoint(ABC, Generic[RequestT]):
    """An ASGI endpoint. A subclass says what is particular to its kind of request.

    A request holds one of the server's places from its body's end to the answer's; it is
    cancelled when its client leaves.
    """

    request_type: type[RequestT]

    @abstractmethod
    async def respond(self, call: Call[RequestT]) -> Response:
        """The answer."""

    def error_body(self, error: AxionError) -> dict[str, Any]:
        """The JSON of an error."""
        return error.body()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = server_state(scope)
        # A place is taken once the body is there: slow clients must not hold the places.
        body = await read_json_body(state, scope, receive)
        with state.admit():
            num_bytes = len(body)
            request = await off_loop(num_bytes, parse_request, self.request_type, body)
            del body  # it may be large, and the answer long
            served = state.registry.get(request.model)
            route = Route(served, state.metrics)
            call = Call(
                request,
                num_bytes,
                Headers(scope=scope),
                served.name,
                route,
                state,
                request_id=scope["state"]["request_id"],
                arrived=scope["state"]["arrived"],
            )
            async with cancelled_on_disconnect(receive):
                await self.send(call, scope, receive, _telling_engine(route, send))

    async def send(self, call: Call[RequestT], scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.respond(call)
        await response(scope, receive, send)
