"""Axion's own engine as a backend: its start and end, and which module does what is asked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Self

from cachetools import LRUCache

from axion import __version__
from axion.backends.architectures import (
    fallback_architectures,
    native_architectures,
    native_quantizations,
    refused_architectures,
)
from axion.backends.base import ModelConfig, PreparedChat, Tokenization
from axion.backends.capabilities import Capabilities
from axion.backends.facts import EngineFacts
from axion.backends.inference import LibraryBackend
from axion.backends.native.cache_key import NO_EFFECT, cache_key, reads_clock
from axion.backends.native.chat import prepare_chat, stream_chat
from axion.backends.native.completions import stream_completion
from axion.backends.native.engine import spawn_engine
from axion.backends.native.model import EngineFactory, LoadedModel, load_text
from axion.backends.native.prompt import chat_prompt, in_thread_if_long, text_prompt
from axion.backends.native.sampling import check_vocabulary
from axion.errors import EngineUnavailableError, ModelLoadError
from axion.hub.gguf import TENSOR_TYPES
from axion.hub.resolve import resolve
from axion.hub.snapshot import FORMATS, FORMATS_WITH_PICKLE, fingerprint, native_formats
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.completions import CompletionChunk, CompletionRequest
from axion.openai.delivered import Delivered
from axion.settings import Settings
from axion.text.grammar import GrammarCompiler
from axion.types import BackendHealth, BackendState, EngineConfig

# Requests whose key is remembered, so that a cached answer needs no template and no tokenizer.
_MAX_KEYS = 4096


class NativeBackend(LibraryBackend):
    """Serves one model by an engine that speaks token ids.

    Args:
        engine_factory: starts an engine; returns when it is ready. Without it, in a process of its
            own.
    """

    engine = "native"
    has_own_queue = True
    # What it does not honour it refuses itself.
    capabilities = Capabilities(engine="native", honours_all=True)

    def __init__(self, engine_factory: EngineFactory = spawn_engine) -> None:
        self._engine_factory = engine_factory
        self._model: LoadedModel | None = None
        self._keys: LRUCache[bytes, tuple[bytes, bool]] = LRUCache(_MAX_KEYS)

    @classmethod
    def from_settings(cls, settings: Settings, on_progress: Callable[[int, int], None]) -> Self:
        """One in a process of its own."""
        return cls(partial(spawn_engine, on_progress=on_progress))

    @classmethod
    async def facts(cls, settings: Settings) -> EngineFacts:
        """What is known of the engine; no architectures where there may be more."""
        architectures = await asyncio.to_thread(native_architectures)
        fallback = await asyncio.to_thread(fallback_architectures)
        return EngineFacts(
            engine="native",
            version=__version__,
            architectures=architectures and architectures | fallback,
            by_fallback=fallback,
            refusals=await asyncio.to_thread(refused_architectures),
            formats=FORMATS_WITH_PICKLE if settings.allow_pickle else FORMATS,
            quantizations=await asyncio.to_thread(native_quantizations)
            | {kind.name for kind in TENSOR_TYPES.values()},
            quantizes=frozenset({"int8", "int4", "fp8"}),
            deterministic=True,
            remote_code=True,
            memory_factor={"cpu": 1.0, "cuda": 1.05},
        )

    async def start(self, model: ModelConfig) -> None:
        """Find the model's files, load what the API process needs of them, start the engine.

        Raises:
            ModelNotFoundError: there is no such model.
            ModelLoadError: it cannot be served; the message says why.
        """
        if model.tensor_parallel_size > 1:
            raise ModelLoadError(
                f"tensor_parallel_size is {model.tensor_parallel_size}; the native engine computes "
                "on one device."
            )
        formats = native_formats(
            allow_pickle=model.allow_pickle, trust_remote_code=model.trust_remote_code
        )
        path = (await resolve(model.model_name, formats=formats)).path
        draft_path = ""
        if model.draft_model:
            draft_path = str((await resolve(model.draft_model, formats=formats)).path)
        config = _engine_config(model, path, draft_path)
        starting = asyncio.ensure_future(self._engine_factory(config))
        try:
            text = await asyncio.to_thread(load_text, path)
            digest = await asyncio.to_thread(fingerprint, path)
            ready = await starting
            info = ready.info
            grammars = GrammarCompiler(lambda: text[0], info.vocab_size, info.eos_token_ids)
            self._model = LoadedModel(
                model.name, ready, *text, fingerprint=digest, grammars=grammars
            )
        except BaseException:
            starting.cancel()
            (engine,) = await asyncio.gather(starting, return_exceptions=True)
            if not isinstance(engine, BaseException):
                await engine.stop(0)
            raise

    async def health(self) -> BackendHealth:
        if self._model is None:
            return BackendHealth(state=BackendState.STARTING, detail="The model is loading.")
        return self._model.engine.health()

    async def stop(self, drain_s: float) -> None:
        if self._model is not None:
            await self._model.engine.stop(drain_s)
            if self._model.chat_template is not None:
                self._model.chat_template.close()
            self._model.tokenizer.close()

    async def prepare_chat(self, request: ChatCompletionRequest) -> PreparedChat:
        model = self._loaded()
        # As it came: the order of keys in a tool is part of the prompt.
        digest = hashlib.blake2b(request.model_dump_json(exclude=NO_EFFECT).encode()).digest()
        known = self._keys.get(digest)
        if known is not None:
            return PreparedChat(*known, partial(stream_chat, model, request))
        prompt = await prepare_chat(model, request)
        known = cache_key(model, request, prompt), prompt.params.is_deterministic
        if not reads_clock(model, request):
            self._keys[digest] = known
        return PreparedChat(*known, partial(stream_chat, model, request, prompt=prompt))

    def chat(
        self, request: ChatCompletionRequest, request_id: str, *, delivered: Delivered | None = None
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        return stream_chat(self._loaded(), request, request_id, delivered=delivered)

    def complete(
        self, request: CompletionRequest, request_id: str, *, delivered: Delivered | None = None
    ) -> AsyncGenerator[CompletionChunk, None]:
        return stream_completion(self._loaded(), request, request_id, delivered=delivered)

    async def tokenize(
        self,
        prompt: str | ChatCompletionRequest,
        *,
        add_special_tokens: bool | None = None,
        with_strings: bool = False,
    ) -> Tokenization:
        model = self._loaded()
        if isinstance(prompt, str):
            with_special = add_special_tokens is not False
            encode = partial(text_prompt, model, prompt, add_special_tokens=with_special)
            token_ids = await in_thread_if_long(model, len(prompt), encode)
        else:
            token_ids = await asyncio.to_thread(
                chat_prompt, model, prompt, add_special_tokens=bool(add_special_tokens)
            )
        strings = map(model.tokenizer.id_to_token, token_ids) if with_strings else ()
        return Tokenization(
            token_ids=token_ids,
            token_strings=[string or "" for string in strings],
            max_model_len=model.engine.info.max_model_len,
        )

    async def detokenize(self, token_ids: list[int]) -> str:
        model = self._loaded()
        check_vocabulary("tokens", token_ids, model.engine.info.vocab_size)
        decode = partial(model.tokenizer.decode, token_ids, skip_special_tokens=False)
        return await in_thread_if_long(model, len(token_ids), decode)

    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise EngineUnavailableError("The model is loading.")
        return self._model


def _engine_config(model: ModelConfig, path: Path, draft_path: str) -> EngineConfig:
    return EngineConfig(
        model_path=str(path),
        device=model.device,
        dtype=model.dtype,
        quantization=model.quantization,
        speculative=model.speculative,
        draft_model_path=draft_path,
        max_model_len=model.max_seq_len,
        max_num_seqs=model.max_num_seqs,
        max_num_batched_tokens=model.max_num_batched_tokens,
        target_itl_s=model.target_itl_s,
        kv_cache_bytes=model.kv_cache_bytes,
        kv_cache_dtype=model.kv_cache_dtype,
        kv_offload_bytes=model.kv_offload_bytes,
        memory_fraction=model.memory_fraction,
        num_threads=model.num_threads,
        cuda_graphs=model.cuda_graphs,
        async_scheduling=model.async_scheduling,
        allow_pickle=model.allow_pickle,
        trust_remote_code=model.trust_remote_code,
        deterministic=model.deterministic,
    )
