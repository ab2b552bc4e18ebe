"""Mixtral (arXiv:2401.04088): a Mistral with experts in every layer."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.config import Epsilon, NumExperts, Size, WindowConfig
from axion.models.moe import MoEConfig, MoEForCausalLM


@dataclass(kw_only=True)
class MixtralConfig(WindowConfig, MoEConfig):
    default_rope_theta = 1_000_000.0

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Length = 131072
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Size | None = None
    num_experts: NumExperts = 8
    num_experts_per_tok: NumExperts = 2
    norm_topk_prob: bool = True


class MixtralForCausalLM(MoEForCausalLM):
    architectures = ("MixtralForCausalLM",)
    renamed_tensors = (
        *MoEForCausalLM.renamed_tensors,
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"(\.experts\.\d+)\.w1\.", r"\1.gate_proj."),
        (r"(\.experts\.\d+)\.w2\.", r"\1.down_proj."),
        (r"(\.experts\.\d+)\.w3\.", r"\1.up_proj."),
    )
    config_cls = MixtralConfig
