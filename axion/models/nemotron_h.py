"""Nemotron-H (arXiv:2504.03624) and Nemotron 3: each layer is Mamba-2, attention without positions,
an MLP or experts, which have no gates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

from torch import Tensor, nn

from axion.layers.activation import get_activation
from axion.layers.context import NO_KV_CACHE, ForwardContext
from axion.layers.linear import Linear
from axion.layers.moe import ExpertLinear, Experts
from axion.layers.norm import Float32RMSNorm
from axion.layers.rotary import Length
from axion.models.base import CausalLM, PlainMLP
from axion.models.config import Epsilon, NumExperts, Size
from axion.models.hybrid import MixerForCausalLM, UnrotatedAttention
from axion.models.mamba2_mixer import Mamba2Config, Mamba2Mixer
from axion.models.moe import MoEForCausalLM, SharedMoE, SharedMoEConfig

_KINDS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


@dataclass(kw_only=True)
class NemotronHConfig(Mamba2Config, SharedMoEConfig):
    """
    Attributes:
        moe_shared_expert_intermediate_size: width of the shared expert.
        time_step_min: smallest step, in place of `time_step_limit`, as in transformers.
        moe_latent_size: size of what experts read and write, if not hidden states.
    """

    renamed_fields = (
        ("layers_block_type", "layer_types"),
        ("layer_norm_epsilon", "rms_norm_eps"),
        ("mlp_hidden_act", "hidden_act"),
        ("mamba_num_heads", "mamba_n_heads"),
        ("mamba_head_dim", "mamba_d_head"),
        ("n_groups", "mamba_n_groups"),
        ("ssm_state_size", "mamba_d_state"),
        ("conv_kernel", "mamba_d_conv"),
        ("use_conv_bias", "mamba_conv_bias"),
        ("use_bias", "mamba_proj_bias"),
        ("chunk_size", "mamba_chunk_size"),
        ("expand", "mamba_expand"),
    )

    intermediate_size: Size = 21504
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    hidden_act: str = "relu2"
    mamba_hidden_act: str | None = "silu"
    max_position_embeddings: Length = 4096
    rms_norm_eps: Epsilon = 1e-5
    mamba_d_head: Size = 64
    mamba_n_groups: Size = 8
    mamba_d_state: Size = 128
    num_experts: NumExperts = 8
    num_experts_per_tok: NumExperts = 2
    moe_intermediate_size: Size = 7688
    moe_shared_expert_intermediate_size: Size = 7688
    moe_latent_size: Size | None = None
    norm_topk_prob: bool = True
    time_step_min: float = 0.001

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """The layers' kinds are a list or, before that, a letter each."""
        derived, sources = super()._derive(config)
        kinds = config.get("layer_types")
        if not isinstance(kinds, list):
            letters = str(config.get("hybrid_override_pattern") or "ME*-")
            kinds = [_KINDS.get(letter, letter) for letter in letters]
        derived |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
        return derived, sources | {"hybrid_override_pattern", "residual_in_fp32"}

    def norm(self) -> Float32RMSNorm:
        return Float32RMSNorm(self.hidden_size, self.rms_norm_eps)


class NemotronHMamba(Mamba2Mixer):
    def __init__(self, config: NemotronHConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.time_step_limit = [config.time_step_min, inf]


class NemotronHMLP(PlainMLP):
    kv_cache_spec = NO_KV_CACHE

    def forward(self, hidden_states: Tensor, context: ForwardContext | None = None) -> Tensor:
        return super().forward(hidden_states)


class PlainExperts(Experts):
    """Experts without gates."""

    def __init__(self, config: NemotronHConfig) -> None:
        nn.Module.__init__(self)
        num_experts, size = config.num_experts, config.moe_intermediate_size
        hidden_size = config.moe_latent_size or config.hidden_size
        self.gate_up_proj = ExpertLinear(num_experts, hidden_size, {"up_proj": size})
        self.down_proj = ExpertLinear(num_experts, size, {"down_proj": hidden_size})
        self.activation = get_activation(config.hidden_act)

    def activate(self, gate_up: Tensor) -> Tensor:
        return self.activation(gate_up)


class NemotronHMoE(SharedMoE):
    kv_cache_spec = NO_KV_CACHE

    def __init__(self, config: NemotronHConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        shared_size = config.moe_shared_expert_intermediate_size
        self.shared_experts = PlainMLP(replace(config, intermediate_size=shared_size), layer_idx)
        if config.moe_latent_size:
            sizes = config.hidden_size, config.moe_latent_size
            self.fc1_latent_proj = Linear(*sizes, bias=config.mlp_bias)
            self.fc2_latent_proj = Linear(*reversed(sizes), bias=config.mlp_bias)

    def build_experts(self, config: NemotronHConfig) -> Experts:  # type: ignore[override]
        return PlainExperts(config)

    def forward(self, hidden_states: Tensor, context: ForwardContext | None = None) -> Tensor:
        weights, indices = self.gate(hidden_states)
        has_latent = hasattr(self, "fc1_latent_proj")
        x = self.fc1_latent_proj(hidden_states) if has_latent else hidden_states
        x = self.experts(x, weights, indices)
        x = self.fc2_latent_proj(x) if has_latent else x
        return x + self.shared_experts(hidden_states)


class NemotronHForCausalLM(MixerForCausalLM):
    architectures = ("NemotronHForCausalLM",)
    renamed_tensors = (
        *MoEForCausalLM.renamed_tensors,
        *MixerForCausalLM.renamed_tensors,
        (r"\.experts\.up_proj(?=$|\.weight)", ".experts.gate_up_proj"),
    )
    ignored_tensors = (*CausalLM.ignored_tensors, r"mtp\..*")
    config_cls = NemotronHConfig
    mixers = (
        ("mamba", NemotronHMamba),
        ("linear_attention", NemotronHMamba),
        ("attention", UnrotatedAttention),
        ("full_attention", UnrotatedAttention),
        ("mlp", NemotronHMLP),
        ("moe", NemotronHMoE),
    )
