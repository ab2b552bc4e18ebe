"""Embedding and rerank models: each in a process of its own, loaded when it is first asked for."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from axion.backends.worker import Worker
from axion.errors import (
    AxionError,
    EngineUnavailableError,
    InternalError,
    InvalidRequestError,
    ModelLoadError,
    ModelNotFoundError,
)
from axion.hub.resolve import require_allowed
from axion.pooling.messages import (
    EmbedRequest,
    Failed,
    Load,
    LoadFailed,
    Output,
    Pooled,
    PoolingReady,
    Refused,
    RerankRequest,
    StepOutputs,
    decode_from_pooling,
)
from axion.settings import Settings, SettingsError, is_folder, model_folders, named_models
from axion.types import (
    PoolingConfig,
    PoolingHealth,
    PoolingInfo,
    PoolingKind,
    PoolingStats,
)

logger = logging.getLogger("axion.pooling")

# A model that could not be loaded is not tried again for so long, in seconds.
_RETRY_AFTER_S = 5.0
# How much of a client's string an error repeats.
_MAX_ECHO = 100
_ENDPOINTS = {PoolingKind.EMBEDDING: "/v1/embeddings", PoolingKind.RERANK: "/v1/rerank"}
_NOUNS = {PoolingKind.EMBEDDING: "an embedding model", PoolingKind.RERANK: "a rerank model"}


class PoolingWorker(Worker[Output]):
    """One embedding or rerank model in a child process."""

    module = "axion.pooling.process"
    title = "pooling process"
    logger = logger

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__()
        self.config = config
        self.info: PoolingInfo | None = None
        self.stats = PoolingStats()

    async def run(self, request: EmbedRequest | RerankRequest) -> Pooled:
        """The answer to one request.

        Raises:
            InvalidRequestError: the model cannot take it.
            EngineUnavailableError: the process is not ready, or ended meanwhile.
        """
        await self.until_back()
        with self.request(request.request_id, request) as outputs:
            output = await outputs.next()
            outputs.finished = True
        match output:
            case Pooled():
                return output
            case Refused(_, message, param, code):
                raise InvalidRequestError(message, param=param, code=code)
            case Failed():
                raise InternalError("The model failed on this request; the server's log says why.")

    def first_message(self) -> Load:
        return Load(self.config)

    def take(self, frame: bytes) -> None:
        match decode_from_pooling(frame):
            case StepOutputs(outputs, stats):
                self.stats = stats
                for output in outputs:
                    self.deliver(output.request_id, output)
            case PoolingReady(info):
                self.info = info
                self.become_ready()
            case LoadFailed(message, not_found):
                if not_found:
                    raise ModelNotFoundError(message, param="model")
                raise EngineUnavailableError(message, code=ModelLoadError.default_code)

    def reset(self) -> None:
        self.stats = PoolingStats()


class _Slot:
    """A model that is loaded, or being loaded.

    Attributes:
        num_requests: requests that use it; it is not ended while there are any.
        loading: ends with None when the model is loaded, or with why it cannot be.
    """

    def __init__(self, config: PoolingConfig) -> None:
        self.config = config
        self.worker = PoolingWorker(config)
        self.num_requests = 0
        self.loading: asyncio.Task[AxionError | None]

    @contextmanager
    def used(self) -> Iterator[None]:
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

    async def end(self, drain_s: float) -> None:
        self.loading.cancel()
        await asyncio.wait((self.loading,))
        await self.worker.stop(drain_s)


_Key = tuple[PoolingKind, str]


class PoolingBackend:
    """All embedding and rerank models of a server.

    A model is loaded when it is first asked for. Where that makes more than `max_pooling_models`,
    the one that has not been used for longest is ended first.

    A client may name a model of the settings, or any that fastembed has. A folder is only ever
    opened because the settings name it.

    Raises:
        ModelNotFoundError: such a folder lies outside ALLOWED_MODEL_FOLDERS.
        SettingsError: it does not exist.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._named = {
            PoolingKind.EMBEDDING: named_models(settings.embedding_model),
            PoolingKind.RERANK: named_models(settings.rerank_model),
        }
        for kind, models in self._named.items():
            for model in filter(is_folder, models.values()):
                require_allowed(model, model_folders(settings))
                if not Path(model).expanduser().exists():
                    setting = f"{kind.value.upper()}_MODEL"
                    raise SettingsError(f"{setting}: the folder {model} does not exist.")
        self.created = int(time.time())
        # Least recently used first.
        self._slots: dict[_Key, _Slot] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._failures: dict[_Key, tuple[float, AxionError]] = {}
        self._ids: asyncio.Task[dict[_Key, str]] | None = None
        self._stopped = False

    @property
    def names(self) -> list[str]:
        """What clients may call the models of the settings and those that are loaded."""
        named = [name for models in self._named.values() for name in models]
        return list(dict.fromkeys([*named, *(name for _, name in self._slots)]))

    async def embed(
        self,
        model: str | None,
        inputs: Sequence[str | list[int]],
        *,
        truncate_to: int | None = None,
        dimensions: int | None = None,
    ) -> tuple[str, Pooled]:
        """Embed texts or token ids; the model's name and its answer.

        Args:
            model: None for the first of EMBEDDING_MODEL.
            truncate_to: tokens that a longer text is cut to, or `MODEL_LIMIT`; None refuses it.

        Raises:
            InvalidRequestError: a text is too long, or the model makes no embeddings.
            ModelNotFoundError: there is no such model.
            EngineUnavailableError: it cannot be had now.
        """
        request = EmbedRequest(uuid.uuid4().hex, list(inputs), truncate_to, dimensions)
        return await self._run(PoolingKind.EMBEDDING, model, request)

    async def rerank(
        self,
        model: str | None,
        queries: list[str],
        documents: list[str],
        *,
        truncate_to: int | None = None,
        max_document_tokens: int | None = None,
        param: str = "documents",
    ) -> tuple[str, Pooled]:
        """Score pairs; the model's name, and one raw score (a logit) for each document.

        Args:
            queries: as many as documents, or one for all of them.
            param: the field that the documents come from.

        Raises:
            The same as `embed`.
        """
        request = RerankRequest(
            uuid.uuid4().hex, queries, documents, truncate_to, max_document_tokens, param
        )
        return await self._run(PoolingKind.RERANK, model, request)

    def health(self) -> list[PoolingHealth]:
        """Every model of the settings, and every other that is loaded."""
        keys = [(kind, name) for kind, models in self._named.items() for name in models]
        return [_health(key, self._slots.get(key)) for key in dict.fromkeys([*keys, *self._slots])]

    async def stop(self, drain_s: float) -> None:
        """Refuse new requests, let running ones finish for `drain_s` seconds, then end."""
        self._stopped = True
        ending = [slot.end(drain_s) for slot in self._slots.values()]
        await asyncio.gather(*ending, *self._ending)
        self._slots.clear()

    async def _run(
        self, kind: PoolingKind, model: str | None, request: EmbedRequest | RerankRequest
    ) -> tuple[str, Pooled]:
        slot = self._slot(await self._find(kind, model))
        with slot.used():
            # A caller who leaves does not end what others wait for.
            error = await asyncio.shield(slot.loading)
            if error is not None:
                raise error.with_traceback(None)
            return slot.config.name, await slot.worker.run(request)

    async def _find(self, kind: PoolingKind, name: str | None) -> PoolingConfig:
        """Which model a request means."""
        named = self._named[kind]
        name = next(iter(named)) if name is None else name
        if name in named:
            return self._config(kind, name, named[name])
        ids = await self._read_ids()
        if (model := ids.get((kind, name.lower()))) is not None:
            return self._config(kind, model, model)
        shown = name if len(name) <= _MAX_ECHO else f"{name[:_MAX_ECHO]}…"
        (other,) = (other for other in PoolingKind if other is not kind)
        if name in self._named[other] or (other, name.lower()) in ids:
            raise InvalidRequestError(
                f"{shown} is {_NOUNS[other]}: {_ENDPOINTS[other]} is for it.", param="model"
            )
        raise ModelNotFoundError(
            f"The model {shown!r} is not {_NOUNS[kind]} that this server has. It has "
            f"{', '.join(named)}, and those that fastembed lists.",
            param="model",
        )

    def _config(self, kind: PoolingKind, name: str, model: str) -> PoolingConfig:
        settings = self._settings
        return PoolingConfig(
            kind=kind,
            name=name,
            model=model,
            is_folder=is_folder(model),
            device=settings.device,
            dtype=settings.dtype,
            max_batch_size=settings.max_batch_size,
            max_batch_tokens=settings.max_batched_tokens,
            max_wait_s=settings.batch_timeout_ms / 1000,
            num_threads=settings.cpu_threads,
        )

    async def _read_ids(self) -> dict[_Key, str]:
        """Ids of fastembed's models, by kind and id in small letters."""
        if self._ids is None or (self._ids.done() and self._ids.exception() is not None):
            self._ids = asyncio.create_task(_fastembed_ids())
        return await asyncio.shield(self._ids)

    def _slot(self, config: PoolingConfig) -> _Slot:
        """The place of a model, which is now the most recently used one."""
        if self._stopped:
            raise EngineUnavailableError("The server is shutting down.")
        key = (config.kind, config.name)
        slot = self._slots.pop(key, None)
        if slot is None:
            failed_at, error = self._failures.get(key, (0.0, None))
            if error is not None and time.monotonic() - failed_at < _RETRY_AFTER_S:
                raise error.with_traceback(None)
            ending = self._make_room()
            slot = _Slot(config)
            slot.loading = asyncio.create_task(self._load(key, slot, ending))
        self._slots[key] = slot
        return slot

    def _make_room(self) -> asyncio.Task[None] | None:
        """End the model that has not been used for longest, if there is one too many."""
        limit = self._settings.max_pooling_models
        if len(self._slots) < limit:
            return None
        for key, slot in self._slots.items():
            if not slot.num_requests:
                del self._slots[key]
                ending = asyncio.create_task(slot.end(0))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
                return ending
        raise EngineUnavailableError(
            f"{limit} embedding and rerank models are in use, which is all that this server loads "
            "at once. Send the request again in a moment, or raise MAX_POOLING_MODELS."
        )

    async def _load(
        self, key: _Key, slot: _Slot, ending: asyncio.Task[None] | None
    ) -> AxionError | None:
        try:
            if ending is not None:  # two models at once may be more than the memory holds
                await asyncio.shield(ending)
            logger.info("loading %s", slot.config.name)
            await slot.worker.start()
            self._failures.pop(key, None)
            return None
        except asyncio.CancelledError:
            return EngineUnavailableError("The model is being ended. Send the request again.")
        except (EngineUnavailableError, ModelNotFoundError) as error:
            failure: AxionError = error
        except Exception as error:
            # What else it is holds what the process wrote, and paths in it.
            logger.error("%s cannot be loaded: %s", slot.config.name, error)
            failure = EngineUnavailableError(
                f"The model {slot.config.name} cannot be loaded; the server's log says why.",
                code=ModelLoadError.default_code,
            )
        if self._slots.get(key) is slot:
            del self._slots[key]
        self._failures[key] = (time.monotonic(), failure)
        return failure


def _health(key: _Key, slot: _Slot | None) -> PoolingHealth:
    kind, name = key
    if slot is None:
        return PoolingHealth(name=name, kind=kind)
    worker = slot.worker
    return PoolingHealth(
        name=name,
        kind=kind,
        state=worker.state,
        detail=worker.detail,
        num_requests=slot.num_requests,
        restarts=worker.restarts,
        info=worker.info,
        stats=worker.stats,
    )


async def _fastembed_ids() -> dict[_Key, str]:
    """Asked of a process of its own: fastembed and onnxruntime stay out of this one."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "axion.pooling.catalog"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        written, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise InternalError("fastembed's list of models cannot be read; the server's log says why.")
    catalog = msgspec.json.decode(written, type=dict[PoolingKind, list[str]])
    return {(kind, model.lower()): model for kind, models in catalog.items() for model in models}
