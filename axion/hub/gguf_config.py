"""What config.json and generation_config.json would say of the model in a GGUF file."""

from __future__ import annotations

from typing import Any

from axion.errors import ModelLoadError
from axion.hub.gguf import GGUF
from axion.hub.gguf_architectures import ARCHITECTURES
from axion.hub.gguf_metadata import Architecture, shortest

_MARKED = (3, 4)  # of `token_type`: control and user-defined
_ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"),
        *("<|endoftext|>", "<|eom_id|>", "<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<｜end▁of▁sentence｜>", "<turn|>", "<|tool_response>"),
    }
)
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def gguf_config(gguf: GGUF) -> dict[str, Any]:
    """The content of config.json for the model in `gguf`.

    Raises:
        ModelLoadError: the architecture is not supported, a key is missing or has the wrong kind
            of value, or one is there that would not be honoured.
    """
    return _architecture(gguf)(gguf).config()


def gguf_generation_config(gguf: GGUF) -> dict[str, Any]:
    """The content of generation_config.json: sampling defaults, and all ids that end an answer.

    A file has one of each role; llama.cpp knows those of other names by their names, and so do
    its users.
    """
    metadata = gguf.metadata
    tokens, types = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if not isinstance(tokens, list) or not isinstance(types, list):
        tokens = types = []
    ids = {
        token: id
        for id, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in _MARKED and isinstance(token, str) and token in _ENDS
    }
    if {"<|return|>", "<|call|>"} <= ids.keys():
        ids.pop("<|end|>", None)  # of a message, after which the answer goes on
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    named = [metadata.get(f"tokenizer.ggml.{key}") for key in keys]
    ends = {*ids.values(), *(id for id in named if type(id) is int)}
    sampling = {
        field: shortest(value) if isinstance(value, float) else value
        for key, field in _SAMPLING.items()
        if (value := metadata.get(f"general.sampling.{key}")) is not None
    }
    return sampling | {"eos_token_id": sorted(ends)}


def gguf_architecture(gguf: GGUF) -> str:
    """The name that config.json has for the architecture, or the file's own for an unknown one."""
    cls = ARCHITECTURES.get(gguf.architecture)
    return cls(gguf).name() if cls is not None else gguf.architecture


def _architecture(gguf: GGUF) -> type[Architecture]:
    cls = ARCHITECTURES.get(gguf.architecture)
    if cls is None:
        raise ModelLoadError(
            f"GGUF files of the architecture {gguf.architecture[:100]!r} are not supported. "
            f"Supported: {', '.join(sorted(ARCHITECTURES))}."
        )
    return cls
