"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from axion.openai.models import Model, ModelList
from axion.router.registry import ServedModel
from axion.server.state import server_state


async def list_models(request: Request) -> Response:
    registry = server_state(request.scope).registry
    models = ModelList(object="list", data=[_model(served) for served in registry])
    return Response(models.to_json(), media_type="application/json")


async def get_model(request: Request) -> Response:
    served = server_state(request.scope).registry.get(request.path_params["id"])
    return Response(_model(served).to_json(), media_type="application/json")


def _model(served: ServedModel) -> Model:
    return Model(id=served.name, object="model", created=served.created, owned_by="axion")
