"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from axion.layers.attention import paged_attention
from axion.layers.context import ForwardContext, KVCacheSpec
from axion.layers.linear import DenseLinear, Linear
from axion.layers.norm import RMSNorm
from axion.layers.rotary import YarnRope, apply_rotary, apply_rotary_interleaved, rotary_embedding
from axion.models.config import Size
from axion.models.moe import SharedMoEConfig

# Of the norms of the latents, whatever rms_norm_eps says.
_LATENT_EPS = 1e-6


@dataclass(kw_only=True)
class MLAConfig(SharedMoEConfig):
    """The fields of multi-head latent attention.

    Attributes:
        kv_lora_rank: size of the latent that keys and values of a token are made of.
        q_lora_rank: of the one that queries are made of; None: of the hidden states.
        qk_rope_head_dim, qk_nope_head_dim: the rotated part of a head of queries and keys, and the
            rest.
        rope_interleave: neighbours are rotated as pairs, not the two halves.
        moe_layer_freq: always 1: layers from `first_k_dense_replace` on all have experts.
    """

    kv_lora_rank: Size = 512
    q_lora_rank: Size | None = 1536
    qk_nope_head_dim: Size = 128
    qk_rope_head_dim: Size = 64
    v_head_dim: Size = 128
    rope_interleave: bool = True
    moe_layer_freq: Literal[1] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) must be num_attention_heads "
                f"({self.num_attention_heads}): all heads share one latent"
            )

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        return derived, sources | {"qk_head_dim"}


class MLA(nn.Module):
    """Multi-head latent attention.

    A token's keys and values are linear in one small latent, so the cache keeps that and one
    rotated key for all heads. The projection to keys is applied to the queries instead, and the one
    to values to what attention returns: to attention it is one key-value head.

    Attributes:
        window, sinks: as `axion.layers.attention.paged_attention` takes them.
        kv_layer_idx: the layer whose latents the layer attends to; its own, if it computes any.
    """

    sinks: Tensor | None

    def __init__(self, config: MLAConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = self.kv_layer_idx = layer_idx
        self.window = config.window(layer_idx)
        self.register_parameter("sinks", None)
        hidden_size, num_heads = config.hidden_size, config.num_attention_heads
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.v_dim, self.latent_dim = config.v_head_dim, config.kv_lora_rank
        self.head_dim = self.nope_dim + self.rope_dim
        self.kv_cache_spec = KVCacheSpec(
            1,
            self.latent_dim + self.rope_dim,
            self.latent_dim,
            values_in_keys=True,
            window=self.window,
        )
        self.is_interleaved = config.rope_interleave
        bias = config.attention_bias
        if config.q_lora_rank is None:
            self.q_proj = Linear(hidden_size, num_heads * self.head_dim)
        else:
            self.q_a_proj = Linear(hidden_size, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, _LATENT_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, num_heads * self.head_dim)
        self.kv_a_proj_with_mqa = Linear(hidden_size, self.latent_dim + self.rope_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.latent_dim, _LATENT_EPS)
        self.kv_b_proj = DenseLinear(self.latent_dim, num_heads * (self.nope_dim + self.v_dim))
        self.o_proj = Linear(num_heads * self.v_dim, hidden_size, bias=bias)
        self.scale = self.head_dim**-0.5
        self.add_rope(config)

    def add_rope(self, config: MLAConfig) -> None:
        """Build what gives queries and keys their positions."""
        self.rotary_emb = rotary_embedding(config.rope(self.layer_idx), self.rope_dim)
        mscale = config.rope_parameters.mscale_all_dim
        if isinstance(self.rotary_emb, YarnRope) and mscale:
            self.scale *= self.rotary_emb.mscale(mscale) ** 2

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        q_latent = self.compress_q(hidden_states)
        q = self.project_q(q_latent).unflatten(-1, (-1, self.head_dim))
        return self.o_proj(self.attend(q, q_latent, hidden_states, context).flatten(1))

    @property
    def is_shared(self) -> bool:
        """Whether the layer attends to what another has stored."""
        return self.kv_layer_idx != self.layer_idx

    def compress_q(self, hidden_states: Tensor) -> Tensor:
        """`[num_tokens, hidden_size]` to what queries are made of, `[num_tokens, q_lora_rank]`."""
        if hasattr(self, "q_proj"):
            return hidden_states
        return self.q_a_layernorm(self.q_a_proj(hidden_states))

    def project_q(self, q_latent: Tensor) -> Tensor:
        """`[num_tokens, q_lora_rank]` to `[num_tokens, num_heads * head_dim]`."""
        return self.q_proj(q_latent) if hasattr(self, "q_proj") else self.q_b_proj(q_latent)

    def choose(
        self, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor | None:
        """Which tokens each attends to, as `paged_attention` takes it; None: to all of them."""
        return None

    def compress_kv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """`[num_tokens, hidden_size]` to what keys and values are made of,
        `[num_tokens, 1, kv_lora_rank]`, and the key that is to be rotated,
        `[num_tokens, 1, qk_rope_head_dim]`."""
        latent, k_rope = self.kv_a_proj_with_mqa(hidden_states)[:, None].split(
            (self.latent_dim, self.rope_dim), dim=-1
        )
        return self.kv_a_layernorm(latent), k_rope

    def attend(
        self, q: Tensor, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor:
        """Queries `[num_tokens, num_heads, head_dim]` to `[num_tokens, num_heads, v_head_dim]`."""
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)
        k = latent = None
        if not self.is_shared:
            latent, k_rope = self.compress_kv(hidden_states)
            k = torch.cat((latent, self.rotate(k_rope, context)), dim=-1)
        # [num_heads, nope_dim, latent_dim] and [num_heads, v_dim, latent_dim].
        to_keys, to_values = (
            self.kv_b_proj.weight.unflatten(0, (-1, self.nope_dim + self.v_dim))
        ).split((self.nope_dim, self.v_dim), dim=1)
        q_in_latent = torch.einsum("thn,hnl->thl", q_nope, to_keys)
        out = paged_attention(
            torch.cat((q_in_latent, self.rotate(q_rope, context)), dim=-1),
            k,
            latent,
            context.kv_caches[self.kv_layer_idx],
            context,
            scale=self.scale,
            window=self.window,
            sinks=self.sinks,
            chosen=self.choose(q_latent, hidden_states, context),
        )
        return torch.einsum("thl,hvl->thv", out, to_values)

    def rotate(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Give `[num_tokens, num_heads, qk_rope_head_dim]` their positions."""
        rotate = apply_rotary_interleaved if self.is_interleaved else apply_rotary
        return rotate(x, *self.rotary_emb(context, x.dtype))


class UnrotatedMLA(MLA):
    """Queries and keys have no positions: the other layers know the order."""

    def add_rope(self, config: MLAConfig) -> None:
        pass

    def rotate(self, x: Tensor, context: ForwardContext) -> Tensor:
        return x
