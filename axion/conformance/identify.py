"""What serves, which version of it, and on what."""

from __future__ import annotations

import contextlib
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

from axion.backends.facts import device_facts
from axion.conformance.server import GoneError, Server, UnreachableError

# By what a server says of who owns its models.
_ENGINES = {"vllm": "vllm", "llamacpp": "llama_cpp", "sglang": "sglang", "axion": "native"}


class Identity(NamedTuple):
    engine: str
    version: str


async def first_model(server: Server) -> str:
    """The first model that a server lists.

    Raises:
        UnreachableError: it lists none.
    """
    models = await _models(server)
    if not models or not isinstance(models[0].get("id"), str):
        raise UnreachableError("The server lists no model. Name one by --model.")
    return str(models[0]["id"])


async def identify(server: Server) -> Identity:
    """As far as the server says; the engine is `remote` where it does not."""
    models = await _models(server)
    owner = str(models[0].get("owned_by")) if models else ""
    return Identity(_ENGINES.get(owner, "remote"), await _version(server))


async def device_name(device: str) -> str:
    """The device that an engine computes on, as its maker calls it."""
    facts = await device_facts(device)
    return _cpu_name() if facts.kind == "cpu" else facts.name or facts.kind


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
        if found:
            return f"CPU ({found[1].strip()})"
    return f"CPU ({platform.machine()})"


async def _models(server: Server) -> list[dict[str, Any]]:
    try:
        response = await server.get("/v1/models")
    except GoneError as error:
        raise UnreachableError(f"There is no server to check: {error}.") from None
    try:
        found = response.json()["data"]
    except (ValueError, KeyError, TypeError):
        return []
    return [model for model in found if isinstance(model, dict)]


async def _version(server: Server) -> str:
    for path, name in (("/version", "version"), ("/props", "build_info")):
        with contextlib.suppress(ValueError, KeyError, TypeError, GoneError):
            value = (await server.get(path)).json()[name]
            if isinstance(value, str):
                return value
    return ""
