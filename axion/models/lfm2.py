"""LFM2 (arXiv:2511.23404): most layers are a short convolution between two gates; dense, or with
experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from axion.layers.context import NO_KV_CACHE, ForwardContext, KVCacheSpec
from axion.layers.conv import CausalConv1d
from axion.layers.linear import FusedLinear, Linear
from axion.layers.moe import Router, SigmoidRouter
from axion.layers.rotary import Length
from axion.models.base import MLP, CausalLM, HeadNormAttention
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.hybrid import HybridConfig, HybridForCausalLM, num_layers
from axion.models.moe import MoE, MoEConfig, MoEForCausalLM


@dataclass(kw_only=True)
class ShortConvConfig(HybridConfig):
    """The fields that both have.

    Attributes:
        conv_L_cache: tokens that a convolution sees.
    """

    renamed_fields = (
        ("norm_eps", "rms_norm_eps"),
        ("tie_embedding", "tie_word_embeddings"),
        ("block_ff_dim", "intermediate_size"),
    )

    default_rope_theta = 1_000_000.0

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Length = 128_000
    rms_norm_eps: Epsilon = 1e-5
    tie_word_embeddings: bool = True
    conv_bias: bool = False
    conv_L_cache: Size = 3  # noqa: N815

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """Without `layer_types`, `full_attn_idxs` says which layers are attention."""
        derived, sources = super()._derive(config)
        if config.get("layer_types") is None:
            attention = config.get("full_attn_idxs")
            is_given = isinstance(attention, list)
            derived["layer_types"] = [
                "conv" if is_given and i not in attention else "full_attention"
                for i in range(num_layers(config))
            ]
        return derived, sources | {"full_attn_idxs"}


@dataclass(kw_only=True)
class Lfm2Config(ShortConvConfig):
    """
    Attributes:
        block_auto_adjust_ff_dim: an MLP is two thirds as wide as `intermediate_size` says, times
            `block_ffn_dim_multiplier`, and then the next multiple of `block_multiple_of`.
    """

    block_auto_adjust_ff_dim: bool = True
    block_ffn_dim_multiplier: float | None = 1.0
    block_multiple_of: Size = 256

    @property
    def mlp_size(self) -> int:
        """Width of an MLP."""
        if not self.block_auto_adjust_ff_dim:
            return self.intermediate_size
        size = int(2 * self.intermediate_size / 3)
        if self.block_ffn_dim_multiplier is None:
            return size
        size = int(self.block_ffn_dim_multiplier * size)
        return -(-size // self.block_multiple_of) * self.block_multiple_of


class Lfm2MLP(MLP):
    def __init__(self, config: Lfm2Config, layer_idx: int) -> None:
        super().__init__(replace(config, intermediate_size=config.mlp_size), layer_idx)


class ShortConv(nn.Module):
    """A convolution over a few tokens, between two gates."""

    kv_cache_spec: ClassVar[KVCacheSpec] = NO_KV_CACHE

    def __init__(self, config: ShortConvConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        size, bias = config.hidden_size, config.conv_bias
        self.in_proj = FusedLinear(size, {"b": size, "c": size, "x": size}, bias=bias)
        self.conv = CausalConv1d(size, config.conv_L_cache, bias=bias)
        self.out_proj = Linear(size, size, bias=bias)
        self.state_spec = {"conv": self.conv.state}

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        b, c, x = self.in_proj(hidden_states)
        x = self.conv(b * x, context.states[self.layer_idx]["conv"], context)
        return self.out_proj(c * x)


class Lfm2ForCausalLM(HybridForCausalLM):
    architectures = ("Lfm2ForCausalLM",)
    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"^model\.embedding_norm\.", "model.norm."),
        (r"\.operator_norm\.", ".input_layernorm."),
        (r"\.ffn_norm\.", ".post_attention_layernorm."),
        (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
        (r"\.(q|k)_layernorm\.", r".\1_norm."),
        (r"(\.layers\.\d+)\.conv\.", r"\1.self_attn."),
        (r"\.feed_forward\.", ".mlp."),
        (r"\.w1\.", ".gate_proj."),
        (r"\.w3\.", ".up_proj."),
        (r"\.w2\.", ".down_proj."),
    )
    config_cls = Lfm2Config
    mlp_cls: ClassVar[type[nn.Module]] = Lfm2MLP
    mixers = (("full_attention", HeadNormAttention), ("conv", ShortConv))


@dataclass(kw_only=True)
class Lfm2MoeConfig(ShortConvConfig, MoEConfig):
    """
    Attributes:
        num_dense_layers: the first layers, so many, have an MLP instead of experts.
        use_expert_bias: a bias takes part in the choice of experts.
    """

    num_experts: NumExperts = 32
    num_experts_per_tok: NumExperts = 4
    moe_intermediate_size: Size = 1792
    norm_topk_prob: bool = True
    num_dense_layers: Index = 2
    use_expert_bias: bool = True
    routed_scaling_factor: float = 1.0

    def is_sparse(self, layer_idx: int) -> bool:
        return layer_idx >= self.num_dense_layers


class Lfm2Router(SigmoidRouter):
    norm_eps = 1e-6


class Lfm2MoE(MoE):
    def router(self, config: Lfm2MoeConfig) -> Router:  # type: ignore[override]
        router = Lfm2Router(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob,
            scaling_factor=config.routed_scaling_factor,
        )
        if not config.use_expert_bias:
            zeros = torch.zeros(config.num_experts, device="cpu")
            router.register_buffer("e_score_correction_bias", zeros, persistent=False)
        return router


class Lfm2MoeForCausalLM(MoEForCausalLM, Lfm2ForCausalLM):
    architectures = ("Lfm2MoeForCausalLM",)
    renamed_tensors = (
        *MoEForCausalLM.renamed_tensors,
        *Lfm2ForCausalLM.renamed_tensors,
        (r"\.mlp\.expert_bias$", ".mlp.gate.e_score_correction_bias"),
    )
    config_cls = Lfm2MoeConfig
    mlp_cls = MLP
    moe_cls = Lfm2MoE
    config: Lfm2MoeConfig
