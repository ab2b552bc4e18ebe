"""Gemma 3n (Google, 2025): four hidden states for each token, of which each layer computes one and
predicts the others (AltUp, arXiv:2301.13310); like Gemma 4, shared keys and values and an embedding
of each layer's own. Only the text part."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.layers.rotary import Length, Positive
from axion.models.base import MLP
from axion.models.config import Index, Size
from axion.models.gemma4 import (
    Gemma4Attention,
    Gemma4Decoder,
    Gemma4DecoderLayer,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
)

Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


@dataclass(kw_only=True)
class Gemma3nTextConfig(Gemma4TextConfig):
    """
    Attributes:
        intermediate_size: of each layer; in config.json it may be one for all.
        activation_sparsity_pattern: the share of each layer's gates that is 0; by default of the
            first ten layers, if there are more, 95 %.
        altup_num_inputs, altup_active_idx: hidden states of a token, and which one is computed.
        altup_coef_clip: of training.
        laurel_rank: width of the branch beside attention.
    """

    default_rope_theta = 1_000_000.0
    default_local_rope_theta = 10_000.0

    num_key_value_heads: Size | None = 2
    max_position_embeddings: Length = 32_768
    sliding_window_pattern: Size | None = 5
    final_logit_softcapping: Positive | None = 30.0
    num_kv_shared_layers: Index = 15
    intermediate_size: list[Size]
    activation_sparsity_pattern: list[Share] | None = None
    altup_num_inputs: Size = 4
    altup_active_idx: Index = 0
    altup_coef_clip: float | None = 120.0
    altup_correct_scale: bool = True
    laurel_rank: Size = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        num_layers = self.num_hidden_layers
        if self.activation_sparsity_pattern is None:
            num_sparse = 10 if num_layers > 10 else 0
            self.activation_sparsity_pattern = [0.95] * num_sparse + [0.0] * (
                num_layers - num_sparse
            )
        if {len(self.activation_sparsity_pattern), len(self.intermediate_size)} != {num_layers}:
            raise ValueError(
                "activation_sparsity_pattern and a list as intermediate_size must have an entry "
                f"for each of the {num_layers} layers"
            )
        if self.altup_active_idx >= self.altup_num_inputs:
            raise ValueError("altup_active_idx must be below altup_num_inputs")

    def is_sliding(self, layer_idx: int) -> bool:
        return super(Gemma4TextConfig, self).is_sliding(layer_idx)

    def of_layer(self, layer_idx: int) -> Gemma3nTextConfig:
        return self

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super(Gemma4TextConfig, cls)._derive(config)
        sizes = config.get("intermediate_size")
        if not isinstance(sizes, list):
            sizes = [sizes] * config.get("num_hidden_layers", 0)
        return derived | {"intermediate_size": sizes}, sources


class Gemma3nAttention(Gemma4Attention):
    """The same, with heads of one size."""


class Gemma3nMLP(MLP):
    def __init__(self, config: Gemma3nTextConfig, layer_idx: int) -> None:
        own = copy(config)
        own.intermediate_size = config.intermediate_size[layer_idx]
        super().__init__(own, layer_idx)
        sparsity = config.activation_sparsity_pattern[layer_idx]
        self.cutoff = NormalDist().inv_cdf(sparsity) if sparsity else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden_states)
        if self.cutoff is not None:  # gates taken for normally distributed
            std, mean = torch.std_mean(gate, dim=-1, correction=0, keepdim=True)
            gate = F.relu(gate - (mean + std * self.cutoff))
        return self.down_proj(self.activation(gate) * up)


class AltUp(nn.Module):
    """Predicts a token's hidden states before a layer, and corrects them by the computed one."""

    def __init__(self, config: Gemma3nTextConfig) -> None:
        super().__init__()
        num_inputs, hidden_size = config.altup_num_inputs, config.hidden_size
        self.num_inputs, self.active = num_inputs, config.altup_active_idx
        self.correct_output_scale = nn.Parameter(torch.empty(hidden_size), requires_grad=False)
        self.correction_coefs = Linear(num_inputs, num_inputs)
        self.prediction_coefs = Linear(num_inputs, num_inputs**2)
        self.modality_router = Linear(hidden_size, num_inputs)
        self.router_norm = config.norm()

    def predict(self, hidden_states: Tensor) -> Tensor:
        """`[num_inputs, num_tokens, hidden_size]` to the same."""
        coefs = self.prediction_coefs(self._modalities(hidden_states[self.active]))
        coefs = coefs.unflatten(-1, (self.num_inputs, self.num_inputs))
        return torch.einsum("knh,njk->jnh", hidden_states, coefs) + hidden_states

    def correct(self, predictions: Tensor, computed: Tensor) -> Tensor:
        """`[num_inputs, num_tokens, hidden_size]` and the active one of them, to the former."""
        coefs = self.correction_coefs(self._modalities(computed)) + 1.0
        return (computed - predictions[self.active]) * coefs.T[..., None] + predictions

    def _modalities(self, x: Tensor) -> Tensor:
        routed = self.modality_router(self.router_norm(x) * x.shape[-1] ** -1.0)
        return torch.tanh(routed.float()).to(x.dtype)


class Laurel(nn.Module):
    """A residual connection of low rank (arXiv:2411.07501)."""

    def __init__(self, config: Gemma3nTextConfig) -> None:
        super().__init__()
        self.linear_left = Linear(config.hidden_size, config.laurel_rank)
        self.linear_right = Linear(config.laurel_rank, config.hidden_size)
        self.post_laurel_norm = config.norm()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.post_laurel_norm(self.linear_right(self.linear_left(x)))


class Gemma3nDecoderLayer(Gemma4DecoderLayer):
    def __init__(
        self, config: Gemma3nTextConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        del self.layer_scalar
        self.is_scaled = config.altup_correct_scale
        self.altup = AltUp(config)
        self.laurel = Laurel(config)

    def forward(self, hidden_states: Tensor, context: ForwardContext, of_layer: Tensor) -> Tensor:
        """`[num_inputs, num_tokens, hidden_size]` to the same."""
        predictions = self.altup.predict(hidden_states)
        active = predictions[self.altup.active]
        normed = self.input_layernorm(active)
        out = active + self.post_attention_layernorm(self.self_attn(normed, context))
        out = (out + self.laurel(normed)) * 2**-0.5
        transformed = self.mlp(self.pre_feedforward_layernorm(out))
        out = out + self.post_feedforward_layernorm(transformed)
        corrected = self.altup.correct(predictions, out)
        first = corrected[self.altup.active]
        if self.is_scaled:
            first = first * self.altup.correct_output_scale
        gate = self.activation(self.per_layer_input_gate(first))
        first = self.post_per_layer_input_norm(self.per_layer_projection(gate * of_layer))
        corrected[1:] += first
        return corrected


class Gemma3nDecoder(Gemma4Decoder):
    def __init__(self, config: Gemma3nTextConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.num_known = config.vocab_size_per_layer_input
        self.altup_projections, self.altup_unembed_projections = (
            nn.ModuleList(
                Linear(config.hidden_size, config.hidden_size)
                for _ in range(1, config.altup_num_inputs)
            )
            for _ in range(2)
        )

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        first = self.embed(input_ids, context)
        others = (_as_large(project(first), first) for project in self.altup_projections)
        hidden_states = torch.stack((first, *others))
        of_layers = self.embed_for_layers(input_ids, first)
        for layer, of_layer in zip(self.layers, of_layers, strict=True):
            hidden_states = layer(hidden_states, context, of_layer)
        first, *rest = hidden_states
        others = (
            _as_large(project(x), first)
            for project, x in zip(self.altup_unembed_projections, rest, strict=True)
        )
        return self.norm(torch.stack((first, *others)).mean(0))

    def embed_for_layers(self, input_ids: Tensor, hidden_states: Tensor) -> list[Tensor | None]:
        # Ids of other things than text have no embedding of this kind.
        known = input_ids < self.num_known
        return super().embed_for_layers(torch.where(known, input_ids, 0), hidden_states)


def _as_large(x: Tensor, other: Tensor) -> Tensor:
    """`x`, scaled to the root mean square of `other`."""
    target = other.square().mean(-1, keepdim=True).sqrt()
    return x * target / x.square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt()


class Gemma3nForCausalLM(Gemma4ForCausalLM):
    architectures = ("Gemma3nForCausalLM",)
    config_cls = Gemma3nTextConfig
    attention_cls = Gemma3nAttention
    mlp_cls = Gemma3nMLP
    layer_cls = Gemma3nDecoderLayer
    decoder_cls = Gemma3nDecoder
    config: Gemma3nTextConfig
