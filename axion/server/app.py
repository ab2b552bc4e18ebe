"""The HTTP application: every route and every middleware in one view."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from axion import __version__
from axion.router.registry import ModelRegistry
from axion.server.chat import ChatCompletions
from axion.server.completions import Completions
from axion.server.embeddings import Embeddings
from axion.server.errors import ErrorMiddleware, json_response, on_http_exception
from axion.server.health import health, live, ready, version
from axion.server.metrics import metrics
from axion.server.middleware import RequestMiddleware
from axion.server.models import get_model, list_models
from axion.server.rerank import Rerank, Scores
from axion.server.state import ServerState
from axion.settings import Settings


async def index(request: Request) -> Response:
    """What this is and where to go from here."""
    return json_response(
        {"name": "Axion", "version": __version__, "endpoints": [_label(route) for route in ROUTES]}
    )


ROUTES: list[Route] = [
    Route("/", index),
    Route("/v1/chat/completions", ChatCompletions(), methods=["POST"]),
    Route("/v1/completions", Completions(), methods=["POST"]),
    Route("/v1/embeddings", Embeddings(), methods=["POST"]),
    Route("/v1/rerank", Rerank(), methods=["POST"]),
    Route("/v2/rerank", Rerank(), methods=["POST"]),
    Route("/rerank", Rerank(), methods=["POST"]),
    Route("/v1/score", Scores(), methods=["POST"]),
    Route("/score", Scores(), methods=["POST"]),
    Route("/v1/models", list_models),
    Route("/v1/models/{id:path}", get_model),
    Route("/health", health),
    Route("/health/live", live),
    Route("/health/ready", ready),
    Route("/metrics", metrics),
    Route("/version", version),
]


def create_app(settings: Settings, registry: ModelRegistry) -> Starlette:
    """The application that serves `registry`. Starting and stopping the models is the caller's."""
    state = ServerState(settings, registry)
    routes: list[BaseRoute] = [*ROUTES]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(RequestMiddleware, metrics=state.metrics),
            Middleware(ErrorMiddleware),
        ],
        exception_handlers={HTTPException: on_http_exception},
    )
    # A redirect would be built from the Host header, which is the client's to choose.
    app.router.redirect_slashes = False
    app.state.server = state
    return app


def _label(route: Route) -> str:
    method = "POST" if "POST" in (route.methods or ()) else "GET"
    return f"{method} {route.path_format}"
