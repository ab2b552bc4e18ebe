"""`GET /health`, its `/live` and `/ready`, and `GET /version`: for probes and for people."""

from __future__ import annotations

import time
from typing import Any

import psutil
from starlette.requests import Request
from starlette.responses import Response

from axion import __version__
from axion.server.errors import RETRY_AFTER, json_response
from axion.server.state import ServerState, server_state
from axion.types import BackendHealth, BackendState

# Made once: cpu_percent tells the share since it was last asked.
_process = psutil.Process()


async def health(request: Request) -> Response:
    """Status, models, backends and the machine. 200 if a model answers, else 503."""
    state = server_state(request.scope)
    models = await state.registry.health()
    pooling = state.pooling.health()
    status = _status(state, models)
    if any(model.state is BackendState.DOWN for model in pooling):
        status = "degraded"
    return _probe(
        _is_ready(state, models),
        {
            "status": status,
            "version": __version__,
            "uptime_s": round(time.monotonic() - state.started, 1),
            "requests_in_flight": state.num_in_flight,
            "models": [
                {
                    "id": served.name,
                    "backend": _answering(models[served.name]),
                    "health": models[served.name],
                }
                for served in state.registry
            ],
            "pooling": pooling,
            "backends": _backends(models),
            "system": _system(),
        },
    )


async def live(request: Request) -> Response:
    """200 while the process runs its event loop."""
    return json_response({"status": "ok"})


async def ready(request: Request) -> Response:
    """200 if a request sent now would be answered, else 503."""
    state = server_state(request.scope)
    models = await state.registry.health()
    return _probe(_is_ready(state, models), {"status": _status(state, models)})


async def version(request: Request) -> Response:
    return json_response({"version": __version__})


def _is_ready(state: ServerState, models: dict[str, BackendHealth]) -> bool:
    answers = any(health.state is BackendState.READY for health in models.values())
    return answers and not state.draining


def _status(state: ServerState, models: dict[str, BackendHealth]) -> str:
    """`ok`: every model answers; `starting`: the first is still loading; else `degraded`."""
    states = {health.state for health in models.values()}
    if states == {BackendState.READY} and not state.draining:
        return "ok"
    if BackendState.STARTING in states and BackendState.READY not in states:
        return "starting"
    return "degraded"


def _probe(is_ready: bool, content: dict[str, Any]) -> Response:
    if is_ready:
        return json_response(content)
    return json_response(content, 503, {"Retry-After": RETRY_AFTER[503]})


def _answering(health: BackendHealth) -> str | None:
    """The engine that answers a model's requests, where none is refused for what it asks."""
    ready = [engine for engine in health.engines if engine.state is BackendState.READY]
    return ready[0].engine if ready else None


def _backends(models: dict[str, BackendHealth]) -> dict[str, Any]:
    """Each kind of backend in use: whether one of its models answers."""
    backends: dict[str, Any] = {}
    for health in models.values():
        for engine in health.engines:
            entry = backends.setdefault(engine.engine, {"available": False, "num_models": 0})
            entry["available"] |= engine.state is BackendState.READY
            entry["num_models"] += engine.state is not BackendState.STOPPED
    return backends


def _system() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    with _process.oneshot():
        process = {
            "cpu_percent": _process.cpu_percent(),
            "memory_bytes": _process.memory_info().rss,
            "num_threads": _process.num_threads(),
        }
    return {
        "cpu_percent": psutil.cpu_percent(),
        "num_cpus": psutil.cpu_count(),
        "memory_total_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "process": process,
    }
