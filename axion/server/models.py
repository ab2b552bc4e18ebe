"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from axion.openai.models import Model, ModelList
from axion.server.state import server_state


async def list_models(request: Request) -> Response:
    state = server_state(request.scope)
    # Models that chat come first: clients take the first for the one to talk to.
    created = {served.name: served.created for served in state.registry}
    for name in state.pooling.names:
        created.setdefault(name, state.pooling.created)
    answer = ModelList(object="list", data=[_model(*entry) for entry in created.items()])
    return Response(answer.to_json(), media_type="application/json")


async def get_model(request: Request) -> Response:
    state = server_state(request.scope)
    name = request.path_params["id"]
    if name in state.pooling.names:
        model = _model(name, state.pooling.created)
    else:
        model = _model(name, state.registry.get(name).created)
    return Response(model.to_json(), media_type="application/json")


def _model(name: str, created: int) -> Model:
    return Model(id=name, object="model", created=created, owned_by="axion")
