"""Rotary position embedding (RoFormer, arXiv:2104.09864) and its extensions to long contexts.

`linear` (position interpolation, arXiv:2306.15595), `dynamic` (NTK-aware base that grows with the
sequence), `yarn` (arXiv:2309.00071), `longrope` (arXiv:2402.13753) and `llama3` (Llama 3.1's
reference implementation). Names, defaults and formulas agree with transformers 5.

`dynamic` and `longrope` depend on a sequence's length. Here a token's frequencies follow
`ForwardContext.rope_lengths`: the prompt's length for the prompt's tokens, the length so far for
generated ones. This is what transformers computes for a request alone, and it depends neither on
the rest of the batch, nor on how a prompt is chunked, nor on whether a preempted sequence is
computed again. (transformers decides by the longest sequence of a batch, vLLM by the longest
context that the model is served with.) A cached key then depends on the prompt that it was
computed for, so sequences may share cached blocks only if `cache_key` gives them the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.context import ForwardContext

_KEYS = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "yarn": (
        set(),
        {"factor", "attention_factor", "beta_fast", "beta_slow"}
        | {"mscale", "mscale_all_dim", "truncate"},
    ),
    "longrope": ({"short_factor", "long_factor"}, {"factor", "attention_factor"}),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, set()),
}
"""Rope type to the keys that it needs and those that it may have."""

_COMMON_KEYS = {"rope_type", "rope_theta", "partial_rotary_factor"} | {
    "original_max_position_embeddings",
    "finetuned",  # written by the authors of YaRN, read by nobody
}


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """config.json's `rope_parameters` under its own names, and the lengths that they refer to."""

    rope_type: str
    rope_theta: float
    max_position_embeddings: int
    original_max_position_embeddings: int
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    @classmethod
    def from_config(
        cls, config: dict[str, Any], *, rope_theta: float = 10_000.0
    ) -> RopeParameters:
        """Read transformers 5's `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

        Args:
            config: config.json, with its `max_position_embeddings`.
            rope_theta: the family's default.

        Raises:
            ModelLoadError: an unknown rope type; a key missing, unknown to the type or of the
                wrong kind.
        """
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise ModelLoadError("config.json: rope_parameters must be an object.")
        rope = {key: value for key, value in rope.items() if value is not None}
        older_name = rope.pop("type", "default")
        rope_type = rope.setdefault("rope_type", older_name)
        if rope_type not in _KEYS:
            raise ModelLoadError(
                f"The model's rope type {rope_type!r} is not supported. "
                f"Supported: {', '.join(_KEYS)}."
            )
        required, optional = _KEYS[rope_type]
        if missing := required - rope.keys():
            raise ModelLoadError(f"config.json: rope type {rope_type} needs {_names(missing)}.")
        if unknown := rope.keys() - required - optional - _COMMON_KEYS:
            raise ModelLoadError(
                f"config.json: rope type {rope_type} has {_names(unknown)}, which would be "
                "ignored. Remove what the model does not need."
            )
        rope.setdefault("rope_theta", config.get("rope_theta") or rope_theta)
        if (partial := config.get("partial_rotary_factor")) is not None:
            rope.setdefault("partial_rotary_factor", partial)
        length = config["max_position_embeddings"]
        # Phi3 keeps it beside rope_scaling; it goes first there.
        original = config.get("original_max_position_embeddings")
        original = original or rope.get("original_max_position_embeddings") or length
        rope |= {
            "max_position_embeddings": length,
            "original_max_position_embeddings": original,
        }
        try:
            parameters = msgspec.convert(rope, cls)
        except msgspec.ValidationError as error:
            raise ModelLoadError(f"config.json: rope_parameters: {error}.") from None
        return parameters


def _names(keys: set[str]) -> str:
    return ", ".join(sorted(keys))


class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by their positions, the two halves of a head as pairs.

    Only the first `partial_rotary_factor` of each head is rotated.
    """

    def __init__(self, rope: RopeParameters, head_dim: int) -> None:
        super().__init__()
        self.rope = rope
        self.dim = int(head_dim * rope.partial_rotary_factor)
        self.attention_factor = 1.0
        self.register_buffer("inv_freq", self.inverse_frequencies(), persistent=False)

    def forward(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """Rotate `[num_tokens, num_heads, head_dim]` each."""
        # Layers with equal parameters share the tables, whichever module computes them.
        cos, sin = context.once(
            (type(self), self.rope, self.dim), lambda context: self.cos_sin(context, q.dtype)
        )
        return self.rotate(q, cos, sin), self.rotate(k, cos, sin)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b, rest = x.tensor_split((self.dim // 2, self.dim), dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)

    def cos_sin(self, context: ForwardContext, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Two tables `[num_tokens, 1, dim / 2]`, computed in float32."""
        angles = context.positions[:, None].float() * self.token_frequencies(context)
        angles = angles[:, None]
        return (
            (angles.cos() * self.attention_factor).to(dtype),
            (angles.sin() * self.attention_factor).to(dtype),
        )

    def token_frequencies(self, context: ForwardContext) -> Tensor:
        """`[dim / 2]`, or `[num_tokens, dim / 2]` where they depend on the sequence's length."""
        return self.inv_freq

    def inverse_frequencies(self) -> Tensor:
        """`[dim / 2]`, float32: radians a token."""
        return 1.0 / self.wavelengths()
