"""Axion: one OpenAI-compatible server in front of every model a team runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axion.llm import LLM
    from axion.types import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

_HOMES = {"LLM": "axion.llm", "SamplingParams": "axion.types"}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import axion` costs nothing and the API process stays free of torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
