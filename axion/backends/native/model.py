"""A model that is ready: its engine, and what the API process needs of its files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from axion.engine.client import EngineClient
from axion.errors import InvalidRequestError, ModelLoadError
from axion.hub.gguf import is_gguf, read_gguf
from axion.hub.gguf_config import gguf_generation_config
from axion.text.bounded_tokenizer import load_bounded_tokenizer
from axion.text.chat_template import ChatTemplate, load_chat_template
from axion.text.grammar import GrammarCompiler
from axion.text.tokenizer import Tokenizer, read_json
from axion.types import BackendHealth, EngineConfig, SamplingParams


class Engine(EngineClient, Protocol):
    """An engine that can be asked how it is, and stopped."""

    def health(self) -> BackendHealth: ...

    async def stop(self, drain_s: float) -> None: ...


EngineFactory = Callable[[EngineConfig], Awaitable[Engine]]


class _GenerationConfig(msgspec.Struct):
    """The fields of `generation_config.json` that say how to sample."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class LoadedModel(msgspec.Struct, frozen=True):
    """A model that is ready.

    Attributes:
        defaults: the model's own recommendation for sampling fields that a request leaves open.
        fingerprint: digest of the model's files.
        grammars: compiles what the engine will, so that a wrong grammar is an error at once.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    defaults: dict[str, Any]
    fingerprint: str
    grammars: GrammarCompiler


def load_text(path: Path) -> tuple[Tokenizer, ChatTemplate | None, dict[str, Any]]:
    """A model's tokenizer, chat template, and defaults for sampling, from its folder or GGUF file.

    Raises:
        ModelLoadError: one of them is damaged; says which.
    """
    tokenizer = load_bounded_tokenizer(path)
    stored = (
        gguf_generation_config(read_gguf(path))
        if is_gguf(path)
        else read_json(path / "generation_config.json")
    )
    try:
        config = msgspec.convert(stored, _GenerationConfig)
        defaults = {k: v for k, v in msgspec.structs.asdict(config).items() if v is not None}
        SamplingParams(**defaults)
    except (msgspec.ValidationError, InvalidRequestError) as error:
        where = "the GGUF file" if is_gguf(path) else "generation_config.json"
        raise ModelLoadError(f"The sampling defaults in {where} are wrong: {error}") from None
    return tokenizer, load_chat_template(path, tokenizer), defaults
