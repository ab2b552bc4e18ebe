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
computed for, so sequences may share cached blocks only where `cache_key` is the same.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers import kernels
from axion.layers.context import ForwardContext
from axion.layers.norm import RMSNorm

Positive = Annotated[float, msgspec.Meta(gt=0)]
Length = Annotated[int, msgspec.Meta(gt=0, le=2**40)]


@dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """config.json's `rope_parameters` under its own names, and the lengths they refer to."""

    rope_type: str = "default"
    rope_theta: Positive
    partial_rotary_factor: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    max_position_embeddings: Length
    original_max_position_embeddings: Length
    factor: Positive | None = None
    attention_factor: float | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[Positive, ...] = ()
    long_factor: tuple[Positive, ...] = ()
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        *,
        max_position_embeddings: int,
        rope_theta: float,
        partial_rotary_factor: float = 1.0,
    ) -> RopeParameters:
        """Read transformers 5's `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

        Args:
            config: config.json.
            max_position_embeddings: the model's.
            rope_theta, partial_rotary_factor: the family's defaults.

        Raises:
            ModelLoadError: an unknown rope type, or a key that is missing, has the wrong kind
                of value or would not be used.
        """
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise ModelLoadError(f"config.json: rope_parameters must be an object, got {rope!r}.")
        rope = {key: value for key, value in rope.items() if value is not None}
        older_name = rope.pop("type", "default")
        rope_type = rope.setdefault("rope_type", older_name)
        if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
            raise ModelLoadError(
                f"The model's rope type {rope_type!r} is not supported. "
                f"Supported: {', '.join(ROPE_TYPES)}."
            )
        kind = ROPE_TYPES[rope_type]
        if missing := kind.required - rope.keys():
            raise ModelLoadError(f"config.json: rope type {rope_type} needs {_join(missing)}.")
        if unused := rope.keys() - kind.required - kind.optional - _COMMON_KEYS:
            raise ModelLoadError(
                f"config.json: rope type {rope_type} does not use {_join(unused)}. "
                "Ignoring it could give wrong answers, so the model is refused."
            )
        defaults = {"rope_theta": rope_theta, "partial_rotary_factor": partial_rotary_factor}
        for name, default in defaults.items():
            if name not in rope:
                rope[name] = default if config.get(name) is None else config[name]
        # Phi-3 writes it beside rope_scaling, and means that one.
        rope["original_max_position_embeddings"] = (
            config.get("original_max_position_embeddings")
            or rope.get("original_max_position_embeddings")
            or max_position_embeddings
        )
        rope["max_position_embeddings"] = max_position_embeddings
        try:
            return msgspec.convert(rope, cls)
        except msgspec.ValidationError as error:
            raise ModelLoadError(f"config.json: rope_parameters: {error}.") from None


# `finetuned` was written by the authors of YaRN and is read by nobody; the original length is
# left in place by those who switch a scaling off. How positions in time, height and width share a
# rope says nothing about text, where they are the same.
_COMMON_KEYS = {
    *("rope_type", "rope_theta", "partial_rotary_factor", "finetuned"),
    *("mrope_section", "mrope_interleaved"),
    *("max_position_embeddings", "original_max_position_embeddings"),
}


def _join(names: set[str]) -> str:
    return ", ".join(sorted(names))


def rotary_embedding(rope: RopeParameters, head_dim: int) -> RotaryEmbedding:
    """The embedding for `rope.rope_type`.

    Raises:
        ModelLoadError: the parameters do not fit each other or the head.
    """
    try:
        embedding = ROPE_TYPES[rope.rope_type](rope, head_dim)
        usable = 0 < 2 * len(embedding.inv_freq) <= head_dim and embedding.inv_freq.isfinite().all()
    except (ArithmeticError, ValueError, RuntimeError):
        usable = False
    if not usable:
        raise ModelLoadError(
            f"config.json: no {rope.rope_type} rotary embedding with head_dim {head_dim} can be "
            f"computed from {rope}."
        )
    return embedding


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, norm: RMSNorm | None = None) -> Tensor:
    """Rotate the first `2 * num_pairs` of each head, its two halves as pairs (GPT-NeoX style).

    Args:
        x: `[num_tokens, num_heads, head_dim]`.
        cos, sin: `[num_tokens, 1, 2 * num_pairs]`, as `RotaryEmbedding` gives them.
        norm: of each head, before it is rotated.
    """
    if kernel := _kernel(x, cos):
        return kernel.rotate(x, cos, sin, norm, interleaved=False)
    x = x if norm is None else norm(x)
    size = cos.shape[-1]
    rotated, rest = x.tensor_split((size,), dim=-1)
    rotated = rotated.roll(size // 2, -1).mul_(sin).add_(rotated * cos)
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


def apply_rotary_interleaved(
    x: Tensor, cos: Tensor, sin: Tensor, norm: RMSNorm | None = None
) -> Tensor:
    """The same with neighbours as pairs (GPT-J style)."""
    if kernel := _kernel(x, cos):
        return kernel.rotate(x, cos, sin, norm, interleaved=True)
    x = x if norm is None else norm(x)
    size = cos.shape[-1]
    rotated, rest = x.tensor_split((size,), dim=-1)
    a, b = rotated.unflatten(-1, (size // 2, 2)).unbind(-1)
    cos, sin = cos[..., : size // 2], sin[..., size // 2 :]
    rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    return torch.cat((rotated, rest), dim=-1)


def _kernel(x: Tensor, cos: Tensor) -> ModuleType | None:
    # Of each head some pairs are rotated, and the rest is copied.
    return kernels.of("rotary", x, math.gcd(cos.shape[-1] // 2, x.shape[-1]))


@cache
def _shared(rope: RopeParameters, dim: int) -> Hashable:
    """What stands for these, and is found sooner in a dictionary."""
    return object()


class RotaryEmbedding(nn.Module):
    """Cosines and sines of a step's positions. This class is rope type `default`."""

    required: ClassVar[frozenset[str]] = frozenset()
    optional: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, rope: RopeParameters, head_dim: int) -> None:
        super().__init__()
        self.rope = rope
        self.dim = int(head_dim * rope.partial_rotary_factor)
        self.attention_factor = self.scaling()
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)
        self._shared = _shared(rope, self.dim)

    def forward(self, context: ForwardContext, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Tables of cosines and sines, `[num_tokens, 1, 2 * num_pairs]` each: of all pairs, for
        what is first in each, and for what is second. The sines for the first are negated.

        They are computed in float32 and shared by the layers whose parameters are the same.
        """
        return context.once(
            self._shared,
            lambda context: self.tables(context.positions, context.rope_lengths, dtype),
        )

    def tables(
        self, positions: Tensor, rope_lengths: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The same for any positions, in sequences so long; both `[num_positions]`."""
        angles = positions[:, None].float() * self.token_frequencies(rope_lengths)
        cos = (angles.cos() * self.attention_factor).to(dtype)
        sin = (angles.sin() * self.attention_factor).to(dtype)
        return torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None]

    def max_length(self) -> int:
        """Longest sequence that the positions are meant for, in tokens."""
        return self.rope.max_position_embeddings

    def cache_key(self, num_prompt_tokens: int) -> int:
        """Sequences may share cached keys if this is the same for the prompts of both."""
        return 0

    def token_frequencies(self, rope_lengths: Tensor) -> Tensor:
        """Frequencies of tokens in sequences so long, in radians a token.

        Returns:
            `[num_tokens, num_pairs]`, or `[num_pairs]` if the length does not matter.
        """
        return self.inv_freq

    def scaling(self) -> float:
        """Factor on cosines and sines; its square scales the attention scores."""
        return 1.0

    def frequencies(self) -> Tensor:
        """`[num_pairs]`, float32, in radians a token."""
        return 1.0 / self.rope.rope_theta ** self.exponents()

    def exponents(self) -> Tensor:
        return torch.arange(0, self.dim, 2, dtype=torch.float32, device="cpu") / self.dim


class LinearRope(RotaryEmbedding):
    required = frozenset({"factor"})

    def frequencies(self) -> Tensor:
        return super().frequencies() / self.rope.factor


class DynamicRope(RotaryEmbedding):
    """The base grows with the sequence beyond `max_position_embeddings`."""

    required = frozenset({"factor"})

    def __init__(self, rope: RopeParameters, head_dim: int) -> None:
        super().__init__(rope, head_dim)
        self.register_buffer("exponent", self.exponents(), persistent=False)
        self.growth = self.dim / (self.dim - 2)

    def max_length(self) -> int:
        return int(self.rope.factor * self.rope.max_position_embeddings)

    def cache_key(self, num_prompt_tokens: int) -> int:
        return num_prompt_tokens if num_prompt_tokens > self.rope.max_position_embeddings else 0

    def token_frequencies(self, rope_lengths: Tensor) -> Tensor:
        factor, length = self.rope.factor, self.rope.max_position_embeddings
        stretch = factor * rope_lengths.clamp(min=length) / length - (factor - 1)
        base = self.rope.rope_theta * stretch[:, None] ** self.growth
        return 1.0 / base**self.exponent


class YarnRope(RotaryEmbedding):
    """Interpolates the slow dimensions, leaves the fast ones, and blends between."""

    optional = frozenset(
        {"factor", "attention_factor", "beta_fast", "beta_slow"}
        | {"mscale", "mscale_all_dim", "truncate"}
    )

    def max_length(self) -> int:
        stretched = int(self.factor * self.rope.original_max_position_embeddings)
        return max(stretched, self.rope.max_position_embeddings)

    @property
    def factor(self) -> float:
        rope = self.rope
        return rope.factor or rope.max_position_embeddings / rope.original_max_position_embeddings

    def scaling(self) -> float:
        rope = self.rope
        if rope.attention_factor is not None:
            return rope.attention_factor
        if rope.mscale and rope.mscale_all_dim:
            return self.mscale(rope.mscale) / self.mscale(rope.mscale_all_dim)
        return self.mscale(1.0)

    def mscale(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def frequencies(self) -> Tensor:
        low, high = self._turning_dim(self.rope.beta_fast), self._turning_dim(self.rope.beta_slow)
        if self.rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        if low == high:
            high += 0.001
        dims = torch.arange(self.dim // 2, dtype=torch.float32, device="cpu")
        interpolated = ((dims - low) / (high - low)).clamp(0, 1)
        plain = super().frequencies()
        return plain / self.factor * interpolated + plain * (1 - interpolated)

    def _turning_dim(self, num_turns: float) -> float:
        """The dimension that turns so many times within the original context."""
        wavelength = self.rope.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return self.dim * math.log(wavelength) / (2 * math.log(self.rope.rope_theta))


class LongRope(RotaryEmbedding):
    """One searched factor for each frequency, with a second set for long sequences."""

    required = frozenset({"short_factor", "long_factor"})
    optional = frozenset({"factor", "attention_factor"})

    def __init__(self, rope: RopeParameters, head_dim: int) -> None:
        super().__init__(rope, head_dim)
        self.register_buffer("long_inv_freq", self._divided(rope.long_factor), persistent=False)

    def cache_key(self, num_prompt_tokens: int) -> int:
        return int(num_prompt_tokens > self.rope.original_max_position_embeddings)

    def token_frequencies(self, rope_lengths: Tensor) -> Tensor:
        is_long = rope_lengths > self.rope.original_max_position_embeddings
        return torch.where(is_long[:, None], self.long_inv_freq, self.inv_freq)

    def scaling(self) -> float:
        rope = self.rope
        if rope.attention_factor is not None:
            return rope.attention_factor
        original = rope.original_max_position_embeddings
        factor = rope.factor or rope.max_position_embeddings / original
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0

    def frequencies(self) -> Tensor:
        return self._divided(self.rope.short_factor)

    def _divided(self, factors: tuple[float, ...]) -> Tensor:
        plain = super().frequencies()
        if len(factors) != len(plain):
            raise ValueError(f"{len(plain)} factors are needed, got {len(factors)}")
        return plain / torch.tensor(factors, device="cpu")


class Llama3Rope(RotaryEmbedding):
    """Divides the slow frequencies by `factor`, leaves the fast ones, and blends between."""

    required = frozenset({"factor", "low_freq_factor", "high_freq_factor"})

    def frequencies(self) -> Tensor:
        rope, plain = self.rope, super().frequencies()
        num_turns = rope.original_max_position_embeddings * plain / (2 * math.pi)
        kept = (num_turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        kept = kept.clamp(0, 1)
        return (1 - kept) * plain / rope.factor + kept * plain


class ProportionalRope(RotaryEmbedding):
    """The slowest pairs are left unrotated, and the others turn as in a whole head (Gemma 4)."""

    optional = frozenset({"factor"})

    def __init__(self, rope: RopeParameters, head_dim: int) -> None:
        self.num_rotated = int(rope.partial_rotary_factor * head_dim // 2)
        super().__init__(replace(rope, partial_rotary_factor=1.0), head_dim)
        self.rope = rope

    def frequencies(self) -> Tensor:
        plain = super().frequencies() / (self.rope.factor or 1.0)
        plain[self.num_rotated :] = 0.0
        return plain


ROPE_TYPES: dict[str, type[RotaryEmbedding]] = {
    "default": RotaryEmbedding,
    "linear": LinearRope,
    "dynamic": DynamicRope,
    "yarn": YarnRope,
    "longrope": LongRope,
    "llama3": Llama3Rope,
    "proportional": ProportionalRope,
}
