"""The HTTP application: every route and every middleware in one view."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from axion import __version__
from axion.router.registry import ModelRegistry
from axion.server.chat import ChatCompletions
from axion.server.completions import Completions
from axion.server.embeddings import Embeddings
from axion.server.errors import ErrorMiddleware, json_response, on_http_exception
from axion.server.explain import Explain
from axion.server.health import health, live, ready, version
from axion.server.messages import CountTokens, Messages
from axion.server.metrics import metrics
from axion.server.middleware import RequestMiddleware
from axion.server.models import get_model, list_models
from axion.server.openapi import docs, openapi
from axion.server.rerank import Rerank, Scores
from axion.server.responses import Responses, input_items, stored_response
from axion.server.state import ServerState
from axion.server.tokenize import Detokenize, Tokenize
from axion.settings import Settings, listed


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
    Route("/v1/responses", Responses(), methods=["POST"]),
    Route("/v1/responses/{id}", stored_response, methods=["GET", "DELETE"]),
    Route("/v1/responses/{id}/input_items", input_items),
    Route("/v1/messages", Messages(), methods=["POST"]),
    Route("/v1/messages/count_tokens", CountTokens(), methods=["POST"]),
    Route("/tokenize", Tokenize(), methods=["POST"]),
    Route("/v1/tokenize", Tokenize(), methods=["POST"]),
    Route("/detokenize", Detokenize(), methods=["POST"]),
    Route("/v1/detokenize", Detokenize(), methods=["POST"]),
    Route("/v1/route/explain", Explain(), methods=["POST"]),
    Route("/v1/models", list_models),
    Route("/v1/models/{id:path}", get_model),
    Route("/health", health),
    Route("/health/live", live),
    Route("/health/ready", ready),
    Route("/metrics", metrics),
    Route("/version", version),
    Route("/openapi.json", openapi),
    Route("/docs", docs),
]


def create_app(settings: Settings, registry: ModelRegistry) -> Starlette:
    """The application that serves `registry`. Starting and stopping the models is the caller's."""
    state = ServerState(settings, registry)
    routes: list[BaseRoute] = [*ROUTES]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(RequestMiddleware, metrics=state.metrics),
            *_cross_origin(settings),
            Middleware(ErrorMiddleware),
        ],
        exception_handlers={HTTPException: on_http_exception},
    )
    # A redirect would be built from the Host header, which is the client's to choose.
    app.router.redirect_slashes = False
    app.state.server = state
    return app


def _cross_origin(settings: Settings) -> list[Middleware]:
    """What answers a browser that asks for a page from elsewhere (CORS)."""
    if not settings.allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=listed(settings.allowed_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["Retry-After", "X-Request-ID", "X-Axion-Backend", "X-Axion-Cache"],
        )
    ]


def _label(route: Route) -> str:
    methods = sorted(set(route.methods or ()) - {"HEAD"}, reverse=True)
    return f"{', '.join(methods)} {route.path_format}"
