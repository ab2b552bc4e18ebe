"""Any OpenAI-compatible server as a backend, by its URL and key."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Self

from axion.backends.base import ModelConfig
from axion.backends.capabilities import Capabilities, shipped_capabilities
from axion.backends.facts import EngineFacts
from axion.backends.http import Verify
from axion.backends.upstream.backend import UpstreamBackend
from axion.backends.upstream.client import Upstream
from axion.errors import AxionError, ModelLoadError, NotFoundError
from axion.settings import Settings
from axion.types import BackendHealth, BackendState

logger = logging.getLogger("axion.backends")

_PROBE_INTERVAL_S = 10.0


class RemoteBackend(UpstreamBackend):
    """One model of a server that somebody else runs.

    Args:
        url: the server's, as OpenAI's clients take it.
        api_key: sent as a bearer token.
        model: what the server calls the model; the served model's name by default.
        engine: what serves it, for people and for its shipped capabilities.
        capabilities: what the server does with requests; without it what is shipped of the engine.
        health_path: answers 200 while the server is well; without it the list of models is asked.
        probe_interval_s: seconds between two looks at its health.
        verify, extra_body: as `Upstream` takes them.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        engine: str = "remote",
        capabilities: Capabilities | None = None,
        health_path: str | None = None,
        probe_interval_s: float = _PROBE_INTERVAL_S,
        verify: Verify = True,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self._server_capabilities = capabilities or shipped_capabilities(engine)
        self.capabilities = self._server_capabilities.repaired()
        self._url = url
        self._api_key = api_key
        self._model = model
        self._health_path = health_path
        self._probe_interval_s = probe_interval_s
        self._verify = verify
        self._extra_body = extra_body
        self._state = BackendState.STARTING
        self._prober: asyncio.Task[None] | None = None

    @classmethod
    def from_settings(cls, settings: Settings, on_progress: Callable[[int, int], None]) -> Self:
        """The server that the settings name."""
        return cls(
            settings.remote_url,
            api_key=settings.remote_api_key or None,
            model=settings.remote_model or settings.model_name,
        )

    @classmethod
    async def facts(cls, settings: Settings) -> EngineFacts:
        """Whether the settings name a server. What it can serve, it says when it is started."""
        return EngineFacts(
            engine="remote",
            variable="REMOTE_URL",
            installed=bool(settings.remote_url),
            formats=frozenset({"safetensors", "gguf"}),
            tensor_parallel=True,
        )

    async def start(self, model: ModelConfig) -> None:
        """Returns when the server has said that it serves the model.

        Raises:
            ModelLoadError: it has not, or the URL is none.
        """
        name = self._model or model.name
        self.identity = (hashlib.blake2b(self._url.encode()).hexdigest(),)
        try:
            upstream = Upstream(
                self._url,
                engine=self.engine,
                upstream_model=name,
                served_name=model.name,
                api_key=self._api_key,
                verify=self._verify,
                extra_body=self._extra_body,
                capabilities=self._server_capabilities,
            )
        except (ValueError, OSError) as error:
            raise ModelLoadError(f"The remote server of {model.name} is wrong: {error}.") from None
        try:
            await _check(upstream)
        except AxionError as error:
            await upstream.close()
            raise ModelLoadError(
                f"The remote server of {model.name} does not serve {name}: {error.message}"
            ) from None
        self.upstream = upstream
        self._state = BackendState.READY
        self._prober = asyncio.create_task(self._probe(upstream))

    async def health(self) -> BackendHealth:
        return BackendHealth(state=self._state, detail=self.detail if self._is_not_ready else "")

    async def stop(self, drain_s: float) -> None:
        self._state, self.detail = BackendState.STOPPED, "The server is shutting down."
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        if self.upstream is not None:
            await self.upstream.drain(drain_s)
            await self.upstream.close()

    @property
    def _is_not_ready(self) -> bool:
        return self._state is not BackendState.READY

    async def _probe(self, upstream: Upstream) -> None:
        """Look at the server's health for ever."""
        while True:
            await asyncio.sleep(self._probe_interval_s)
            healthy = await self._is_healthy(upstream)
            if healthy is (self._state is BackendState.READY):
                continue
            self._state = BackendState.READY if healthy else BackendState.DOWN
            self.detail = "" if healthy else "The remote server does not answer."
            logger.log(
                logging.INFO if healthy else logging.WARNING,
                "the remote server of %s is %s",
                upstream.served_name,
                self._state,
            )

    async def _is_healthy(self, upstream: Upstream) -> bool:
        if self._health_path is not None:
            return await upstream.is_healthy(self._health_path)
        with contextlib.suppress(AxionError):
            await upstream.models()
            return True
        return False


async def _check(upstream: Upstream) -> None:
    """Raises:
    AxionError: the server does not serve the model.
    """
    with contextlib.suppress(NotFoundError):  # it has no list
        if upstream.upstream_model in await upstream.models():
            return
    await upstream.answers()
