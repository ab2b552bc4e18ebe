"""Zamba2 (arXiv:2411.15242): Mamba-2, and before some of its layers one of a few blocks of
attention and MLP, which such layers share in turn. A block reads the embedding beside the hidden
states, and has small matrices of each layer's own beside its projections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn

from axion.layers.activation import apply_gate, get_activation
from axion.layers.attention import paged_attention
from axion.layers.context import NO_KV_CACHE, ForwardContext, KVCacheSpec
from axion.layers.linear import FusedLinear, Linear
from axion.layers.norm import GroupRMSNorm, RMSNorm
from axion.layers.rotary import Length
from axion.models.base import Attention, CausalLM, Decoder
from axion.models.config import Epsilon, Size
from axion.models.hybrid import HybridForCausalLM, num_layers, whole_number
from axion.models.mamba2_mixer import Mamba2Config, Mamba2Mixer

_HYBRID = "hybrid"


@dataclass(kw_only=True)
class Zamba2Config(Mamba2Config):
    """
    Attributes:
        layer_types: `hybrid` where a block goes before Mamba-2.
        num_mem_blocks: how many blocks there are.
        use_shared_attention_adapter: the projections of attention have matrices of each layer's
            own; those of the MLP always do.
        adapter_rank: the width between such a pair of matrices.
        use_mem_rope: queries and keys are rotated.
        time_step_min: smallest step, in place of `time_step_limit`, as in transformers.
    """

    renamed_fields = (
        ("layers_block_type", "layer_types"),
        ("n_mamba_heads", "mamba_n_heads"),
        ("mamba_headdim", "mamba_d_head"),
        ("mamba_ngroups", "mamba_n_groups"),
        ("add_bias_linear", "mamba_proj_bias"),
        ("chunk_size", "mamba_chunk_size"),
    )

    hidden_act: str = "gelu"
    mamba_hidden_act: str | None = "silu"
    max_position_embeddings: Length = 4096
    rms_norm_eps: Epsilon = 1e-5
    layer_types: list[Literal["linear_attention", "hybrid"]]  # type: ignore[assignment]
    tie_word_embeddings: bool = True
    mamba_n_heads: Size = 8
    mamba_d_state: Size = 64
    mamba_conv_bias: Literal[True] = True
    num_mem_blocks: Size = 1
    use_shared_attention_adapter: bool = False
    adapter_rank: Size = 128
    use_mem_rope: bool = False
    use_long_context: Literal[False] = False
    time_step_min: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        self.time_step_limit = [self.time_step_min, inf]

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        hidden_size = whole_number(config, "hidden_size", 0)
        if config.get("intermediate_size") is None:
            derived["intermediate_size"] = 4 * hidden_size
        derived["head_dim"] = (
            2 * hidden_size // (whole_number(config, "num_attention_heads", 1) or 1)
        )
        kinds = config.get("layer_types") or [
            _HYBRID if i in (6, 12, 18, 24, 30, 36, 42, 47, 51) else "mamba"
            for i in range(num_layers(config))
        ]
        # Older checkpoints call Mamba-2's layers by its name.
        derived["layer_types"] = ["linear_attention" if k == "mamba" else k for k in kinds]
        return derived, sources | {
            *("attention_head_dim", "attention_hidden_size", "hybrid_layer_ids", "kv_channels"),
            *("num_query_groups", "use_mem_eff_path", "use_conv_bias", "time_step_limit"),
        }


def _adapters(config: Zamba2Config, block: int, in_size: int, out_size: int) -> nn.ModuleDict:
    """A pair of matrices for each layer that has the block, by the layer's place among those that
    have one."""
    places = range(block, config.layer_types.count(_HYBRID), config.num_mem_blocks)
    rank = config.adapter_rank
    return nn.ModuleDict(
        {str(i): nn.Sequential(Linear(in_size, rank), Linear(rank, out_size)) for i in places}
    )


class SharedAttention(Attention):
    def __init__(self, config: Zamba2Config, block: int) -> None:
        size = 2 * config.hidden_size
        super().__init__(replace(config, hidden_size=size), layer_idx=0)
        self.o_proj = Linear(size, config.hidden_size)
        self.scale = (self.head_dim / 2) ** -0.5
        if not config.use_mem_rope:
            del self.rotary_emb
        self.has_rope = config.use_mem_rope
        self.has_adapters = config.use_shared_attention_adapter
        if self.has_adapters:
            for name in ("q", "k", "v"):
                self.add_module(f"linear_{name}_adapter_list", _adapters(config, block, size, size))

    def attend(
        self, hidden_states: Tensor, layer_idx: int, place: int, context: ForwardContext
    ) -> Tensor:
        """`[num_tokens, 2 * hidden_size]` to `[num_tokens, hidden_size]`.

        Args:
            layer_idx: of the layer whose keys and values these are.
            place: of the layer, among those with a block.
        """
        q, k, v = self.project_qkv(hidden_states)
        if self.has_adapters:
            lists = (
                self.linear_q_adapter_list,
                self.linear_k_adapter_list,
                self.linear_v_adapter_list,
            )
            q, k, v = (
                x + adapters[str(place)](hidden_states).view_as(x)
                for x, adapters in zip((q, k, v), lists, strict=True)
            )
        if self.has_rope:
            q, k = self.rotate_qk(q, k, context)
        out = paged_attention(q, k, v, context.kv_caches[layer_idx], context, scale=self.scale)
        return self.o_proj(out.flatten(1))


class SharedMLP(nn.Module):
    def __init__(self, config: Zamba2Config, block: int) -> None:
        super().__init__()
        size, bias = config.intermediate_size, config.mamba_proj_bias
        shards = {"gate": size, "up": size}
        self.gate_up_proj = FusedLinear(config.hidden_size, shards, bias=bias)
        self.down_proj = Linear(size, config.hidden_size, bias=bias)
        self.activation = get_activation(config.hidden_act)
        self.gate_up_proj_adapter_list = _adapters(config, block, config.hidden_size, 2 * size)

    def forward(self, hidden_states: Tensor, place: int) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        gate, up = self.gate_up_proj(hidden_states)
        more_gate, more_up = self.gate_up_proj_adapter_list[str(place)](hidden_states).chunk(2, -1)
        return self.down_proj(apply_gate(self.activation, gate + more_gate, up + more_up))


class SharedBlock(nn.Module):
    def __init__(self, config: Zamba2Config, block: int) -> None:
        super().__init__()
        self.attention = SharedAttention(config, block)
        self.feed_forward = SharedMLP(config, block)
        self.input_layernorm = RMSNorm(2 * config.hidden_size, config.rms_norm_eps)
        self.pre_ff_layernorm = config.norm()

    def forward(
        self, hidden_states: Tensor, layer_idx: int, place: int, context: ForwardContext
    ) -> Tensor:
        """`[num_tokens, 2 * hidden_size]` to `[num_tokens, hidden_size]`."""
        out = self.attention.attend(self.input_layernorm(hidden_states), layer_idx, place, context)
        return self.feed_forward(self.pre_ff_layernorm(out), place)


class Zamba2Mixer(Mamba2Mixer):
    def gated_norm(self, config: Mamba2Config) -> nn.Module:
        """With an epsilon of its own, whatever `rms_norm_eps` says."""
        return GroupRMSNorm(self.size, 1e-5, num_groups=config.mamba_n_groups)


class Zamba2Layer(nn.Module):
    """Mamba-2, and a block before it or none.

    Args:
        place: among the layers with a block.
    """

    def __init__(
        self, config: Zamba2Config, layer_idx: int, block: SharedBlock | None, place: int
    ) -> None:
        super().__init__()
        self.layer_idx, self.place = layer_idx, place
        self.norm = config.norm()
        self.self_attn = Zamba2Mixer(config, layer_idx)
        self.kv_cache_spec = NO_KV_CACHE if block is None else block.attention.kv_cache_spec
        self.block = block
        if block is not None:
            self.linear = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, embedded: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` each to the same."""
        mixed = hidden_states
        if self.block is not None:
            both = torch.cat((hidden_states, embedded), dim=-1)
            mixed = mixed + self.linear(self.block(both, self.layer_idx, self.place, context))
        return hidden_states + self.self_attn(self.norm(mixed), context)


class Zamba2Decoder(Decoder):
    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        hidden_states = embedded = self.embed(input_ids, context)
        for layer in self.layers:
            hidden_states = layer(hidden_states, embedded, context)
        return self.norm(hidden_states)


class Zamba2ForCausalLM(HybridForCausalLM):
    architectures = ("Zamba2ForCausalLM",)
    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"^model\.final_layernorm\.", "model.norm."),
        (r"\.shared_transformer\.", ".block."),
        (r"\.block\.self_attn\.", ".block.attention."),
        (r"(\.layers\.\d+)(\.mamba_decoder)?\.mamba\.", r"\1.self_attn."),
        (r"(\.layers\.\d+)(\.mamba_decoder)?\.input_layernorm\.", r"\1.norm."),
    )
    config_cls = Zamba2Config
    decoder_cls = Zamba2Decoder
    config: Zamba2Config

    def __init__(self, config: Zamba2Config) -> None:
        super().__init__(config)
        # Checkpoints may hold what a block's first layer has of it once more for each other.
        self.ignored_tensors += tuple(
            rf"model\.layers\.{layer.layer_idx}\.block\..*"
            for layer in self.model.layers
            if layer.block is not None and layer.place >= config.num_mem_blocks
        )

    def decoder_layers(self) -> list[nn.Module]:
        """Layers with a block take one of the first few of them in turn."""
        config = self.config
        blocks = [SharedBlock(config, i) for i in range(config.num_mem_blocks)]
        layers: list[nn.Module] = []
        place = 0
        for i, kind in enumerate(config.layer_types):
            block = blocks[place % len(blocks)] if kind == _HYBRID else None
            layers.append(Zamba2Layer(config, i, block, place))
            place += block is not None
        return layers

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        return [layer.kv_cache_spec for layer in self.model.layers]
