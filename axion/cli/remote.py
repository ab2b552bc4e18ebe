"""A model behind the OpenAI API of a running server, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from axion.cli.session import Chunk, Chunks, Endpoint
from axion.errors import AxionError

CONNECT_TIMEOUT_S = 10.0


class RemoteError(AxionError):
    """The server cannot be reached, or what it answered is an error."""


class RemoteModel:
    has_chat_template = True

    def __init__(self, client: httpx.Client, name: str) -> None:
        self.name = name
        self._client = client

    def stream(self, endpoint: Endpoint, body: dict[str, Any]) -> Chunks:
        with (
            _reported(self._client),
            self._client.stream("POST", endpoint, json=body) as response,
        ):
            if response.is_error:
                response.read()
            _raise_for_status(response)
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or not data:
                    continue
                if data == "[DONE]":
                    return
                yield _chunk(data)
        raise RemoteError("The server ended the answer before it was complete.")


@contextmanager
def remote_model(url: str, name: str | None, api_key: str | None) -> Iterator[RemoteModel]:
    """A model of the server at `url`.

    Args:
        url: with or without the `/v1` of the API.
        name: None takes the first model that the server lists.

    Raises:
        RemoteError: there is no server, or it serves no model.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RemoteError(f"{url!r} is not a server's URL. Expected http://host:port/v1.")
    base_url = url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # An answer may take long to begin; only a server that is not there is given up on.
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
    with httpx.Client(base_url=base_url, headers=headers, timeout=timeout) as client:
        yield RemoteModel(client, name or _first_model(client))


def _first_model(client: httpx.Client) -> str:
    with _reported(client):
        response = client.get("models")
        _raise_for_status(response)
        models = _json(response.text).get("data")
    if not isinstance(models, list) or not models or not isinstance(models[0], dict):
        raise RemoteError("The server lists no model. Name one.")
    return str(models[0].get("id"))


@contextmanager
def _reported(client: httpx.Client) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError:
        raise RemoteError(
            f"There is no server at {client.base_url}. Start one with `axion serve`."
        ) from None
    except httpx.HTTPError as error:
        raise RemoteError(
            f"The connection to {client.base_url} failed ({type(error).__name__})."
        ) from None


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        message = _json(response.text)["error"]["message"]
    except (RemoteError, KeyError, TypeError):
        message = f"The server answered {response.status_code} {response.reason_phrase}."
    raise RemoteError(str(message))


def _chunk(data: str) -> Chunk:
    chunk = _json(data)
    error = chunk.get("error")
    if error:
        raise RemoteError(str(error.get("message") if isinstance(error, dict) else error))
    return chunk


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RemoteError("What answers there does not speak the OpenAI API.")
    return value
