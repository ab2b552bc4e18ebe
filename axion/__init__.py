"""Axion: one OpenAI-compatible server in front of every model a team runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axion.backends.base import ModelConfig
    from axion.backends.inference import InferenceRequest, InferenceResult
    from axion.backends.llama_cpp import LlamaCppBackend
    from axion.backends.max import MaxBackend
    from axion.backends.native.backend import NativeBackend
    from axion.backends.remote import RemoteBackend
    from axion.backends.sglang import SglangBackend
    from axion.backends.tensorrt_llm import TensorRTLLMBackend
    from axion.backends.tgi import TgiBackend
    from axion.backends.vllm import VllmBackend
    from axion.llm import LLM
    from axion.types import SamplingParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "InferenceRequest",
    "InferenceResult",
    "LlamaCppBackend",
    "MaxBackend",
    "ModelConfig",
    "NativeBackend",
    "RemoteBackend",
    "SamplingParams",
    "SglangBackend",
    "TensorRTLLMBackend",
    "TgiBackend",
    "VllmBackend",
    "__version__",
]

_HOMES = {
    "InferenceRequest": "axion.backends.inference",
    "InferenceResult": "axion.backends.inference",
    "LLM": "axion.llm",
    "LlamaCppBackend": "axion.backends.llama_cpp",
    "MaxBackend": "axion.backends.max",
    "ModelConfig": "axion.backends.base",
    "NativeBackend": "axion.backends.native.backend",
    "RemoteBackend": "axion.backends.remote",
    "SamplingParams": "axion.types",
    "SglangBackend": "axion.backends.sglang",
    "TensorRTLLMBackend": "axion.backends.tensorrt_llm",
    "TgiBackend": "axion.backends.tgi",
    "VllmBackend": "axion.backends.vllm",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import axion` costs nothing and the API process stays free of torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
