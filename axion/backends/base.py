"""The protocol that every engine behind Axion speaks, native or spawned."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from axion.backends.capabilities import Capabilities
from axion.types import BackendHealth

if TYPE_CHECKING:
    from axion.openai.chat import ChatCompletionRequest
    from axion.openai.chat_answer import ChatCompletionChunk
    from axion.openai.completions import CompletionChunk, CompletionRequest
    from axion.openai.delivered import Delivered


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which model to serve, and the limits to serve it with.

    Attributes:
        model_name: Hugging Face id (with `@revision` if wanted), local folder, or `axion/demo`.
        served_name: what clients call it; the model's name when empty.
        max_seq_len: prompt and output tokens of one sequence.
        max_num_seqs: sequences computed at once.
        target_itl_s, kv_cache_dtype, kv_offload_bytes: as in `EngineConfig`; of the native engine
            alone.
        quantization: as in `EngineConfig`, by engines whose facts say that they quantize.
        speculative: as in `EngineConfig`, by the native engine.
        draft_model: name of a small model that guesses tokens for it; empty: none.
        tensor_parallel_size: GPUs that share each of the model's layers.
        cuda_graphs, async_scheduling: as in `EngineConfig`.
        allow_pickle: weights in pytorch_model.bin may be loaded.
        trust_remote_code: as in `EngineConfig`; vLLM gets its own flag.
        deterministic: as in `EngineConfig`, by engines whose facts say that they can be.
    """

    model_name: str
    served_name: str = ""
    max_seq_len: int = 4096
    max_num_seqs: int = 10
    max_num_batched_tokens: int = 2048
    target_itl_s: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    speculative: str = "auto"
    draft_model: str = ""
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    kv_offload_bytes: int = 0
    memory_fraction: float = 0.9
    num_threads: int | None = None
    cuda_graphs: bool = True
    async_scheduling: bool | None = None
    tensor_parallel_size: int = 1
    allow_pickle: bool = False
    trust_remote_code: bool = False
    deterministic: bool = False

    @property
    def name(self) -> str:
        return self.served_name or self.model_name


class Tokenization(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt's tokens.

    Attributes:
        token_strings: as the vocabulary writes them; empty unless asked for.
        max_model_len: prompt and output tokens that the model takes.
    """

    token_ids: list[int]
    token_strings: list[str]
    max_model_len: int


@dataclass(frozen=True)
class PreparedChat:
    """A chat request whose prompt and parameters are decided; it can run once.

    Attributes:
        cache_key: digest of everything that decides the answer, and of nothing else.
        is_deterministic: whether the same request gives the same answer every time.
        run: starts it under a request id, as `InferenceBackend.chat` does.
    """

    cache_key: bytes
    is_deterministic: bool
    run: Callable[[str], AsyncGenerator[ChatCompletionChunk, None]]


class InferenceBackend(Protocol):
    """One model, served by one engine.

    `chat` and `complete` always stream; a caller who wants one answer collects the chunks.
    Errors about the request are raised before the first chunk. `EngineUnavailableError` says that
    the engine is at fault, not the request: another may answer it.

    An answer that another engine has begun is gone on with where `delivered` says what a client
    has of it: what is given follows that, and the usage is of the whole answer. A backend that
    cannot do so raises `CannotContinueError` before its first chunk.
    """

    @property
    def engine(self) -> str:
        """What serves the model, for people to read: `native`, `vllm`."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def has_own_queue(self) -> bool:
        """Whether it takes more requests than it computes at once, and orders those that wait by
        their priority."""
        ...

    async def start(self, model: ModelConfig) -> None:
        """Load the model; returns when a request can be answered."""
        ...

    async def health(self) -> BackendHealth: ...

    async def prepare_chat(self, request: ChatCompletionRequest) -> PreparedChat:
        """Do the part of `chat` that comes before the engine."""
        ...

    def chat(
        self,
        request: ChatCompletionRequest,
        request_id: str,
        *,
        delivered: Delivered | None = None,
    ) -> AsyncGenerator[ChatCompletionChunk, None]: ...

    def complete(
        self,
        request: CompletionRequest,
        request_id: str,
        *,
        delivered: Delivered | None = None,
    ) -> AsyncGenerator[CompletionChunk, None]: ...

    async def tokenize(
        self,
        prompt: str | ChatCompletionRequest,
        *,
        add_special_tokens: bool | None = None,
        with_strings: bool = False,
    ) -> Tokenization:
        """The tokens of a text, or of a conversation as `chat` would give it to the model.

        Args:
            add_special_tokens: whether the tokenizer adds its own; None: to a text only, a
                conversation has them from its template.
        """
        ...

    async def detokenize(self, token_ids: list[int]) -> str:
        """The text of tokens, special ones included."""
        ...

    async def stop(self, drain_s: float) -> None:
        """Refuse new requests, let running ones finish for `drain_s` seconds, then end."""
        ...
