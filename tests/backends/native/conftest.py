from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from axion.backends.base import ModelConfig
from axion.backends.native import model
from axion.backends.native.backend import NativeBackend
from axion.text.chat_template import ChatTemplate, load_chat_template
from axion.types import EngineConfig
from tests.backends.native.harness import (
    ALWAYS_REASONS_TEMPLATE,
    EFFORT_TEMPLATE,
    JSON_TEMPLATE,
    PLAIN_TEMPLATE,
    REASONING_TEMPLATE,
    TOOL_TEMPLATE,
    Start,
    save_model,
)
from tests.echo_engine import EchoEngine


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "plain": save_model(root / "plain", PLAIN_TEMPLATE),
        "tools": save_model(root / "tools", TOOL_TEMPLATE),
        "special": save_model(root / "special", TOOL_TEMPLATE, ("<tool_call>", "</tool_call>")),
        "mistral": save_model(
            root / "mistral",
            "{# [THINK] [TOOL_CALLS] [ARGS] #}" + JSON_TEMPLATE,
            ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]", "<|other|>"),
        ),
        "reasoning": save_model(root / "reasoning", REASONING_TEMPLATE),
        "always": save_model(root / "always", ALWAYS_REASONS_TEMPLATE),
        "effort": save_model(root / "effort", EFFORT_TEMPLATE),
        "json": save_model(root / "json", JSON_TEMPLATE),
        "dated": save_model(root / "dated", "{{ strftime_now('%Y') }}" + PLAIN_TEMPLATE),
        "names": save_model(
            root / "names", "{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}"
        ),
        "named": save_model(root / "named", {"rag": PLAIN_TEMPLATE, "tool_use": TOOL_TEMPLATE}),
        "none": save_model(root / "none", None, temperature=0.25, top_k=7),
    }


@pytest.fixture(scope="package")
def template_processes() -> Iterator[Callable[..., ChatTemplate | None]]:
    """Each template's process is started once, not in every test."""
    loaded: dict[Path, ChatTemplate | None] = {}

    def load(path: Path, tokenizer: Any) -> ChatTemplate | None:
        if path not in loaded:
            loaded[path] = load_chat_template(path, tokenizer)
        return loaded[path]

    yield load
    for template in loaded.values():
        if template is not None:
            template.close()


@pytest.fixture(autouse=True)
def kept_template_processes(
    template_processes: Callable[..., ChatTemplate | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "load_chat_template", template_processes)


@pytest.fixture
def start(folders: dict[str, Path]) -> Start:
    async def start(engine: EchoEngine, folder: str = "plain") -> NativeBackend:
        async def factory(config: EngineConfig) -> EchoEngine:
            return engine

        backend = NativeBackend(factory)
        await backend.start(ModelConfig(model_name=str(folders[folder]), served_name="m"))
        return backend

    return start
