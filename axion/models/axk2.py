"""A.X K2 (SK Telecom, 2026): DeepSeek-V3.2's sparse attention with a gate on what it returns, and
gates on what norms return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.layers.moe import SigmoidRouter
from axion.layers.rotary import Length
from axion.models.base import DecoderLayer
from axion.models.config import Index, NumExperts, Size
from axion.models.moe import SharedMoE
from axion.models.sparse_mla import SparseMLA, SparseMLAConfig, SparseMLAForCausalLM


@dataclass(kw_only=True)
class AXK2Config(SparseMLAConfig):
    """
    Attributes:
        gated_norm_rank: width of the gates on norms.
    """

    num_key_value_heads: Size | None = 32
    max_position_embeddings: Length = 131_072
    q_lora_rank: Size = 384
    kv_lora_rank: Size = 128
    qk_nope_head_dim: Size = 64
    qk_rope_head_dim: Size = 32
    v_head_dim: Size = 64
    index_n_heads: Size = 16
    num_experts: NumExperts = 128
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 512
    first_k_dense_replace: Index = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    gated_norm_rank: Size = 16


class GateMLP(nn.Module):
    def __init__(self, config: AXK2Config) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.gated_norm_rank)
        self.fc2 = Linear(config.gated_norm_rank, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.silu(self.fc1(x)))


class GatedNorm(nn.Module):
    """A norm, and a gate that reads what it returns."""

    def __init__(self, config: AXK2Config) -> None:
        super().__init__()
        self.norm = config.norm()
        self.mlp = GateMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden_size]` to the same."""
        x = self.norm(x)
        return (x * self.mlp(x).float().sigmoid()).to(x.dtype)


class AXK2Attention(SparseMLA):
    def __init__(self, config: AXK2Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        size = config.num_attention_heads * (self.head_dim + self.v_dim)
        del self.q_b_proj
        self.q_gate_proj = Linear(2 * config.q_lora_rank, size)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        compressed = self.q_a_proj(hidden_states)
        q_latent = self.q_a_layernorm(compressed)
        q_gate = self.q_gate_proj(torch.cat((q_latent, compressed), dim=-1))
        q, gate = q_gate.unflatten(-1, (-1, self.head_dim + self.v_dim)).split(
            (self.head_dim, self.v_dim), dim=-1
        )
        out = self.attend(q, q_latent, hidden_states, context)
        return self.o_proj((out * gate.float().sigmoid()).to(out.dtype).flatten(1))


class AXK2DecoderLayer(DecoderLayer):
    def __init__(
        self, config: AXK2Config, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.input_layernorm = GatedNorm(config)
        if config.is_sparse(layer_idx):
            self.post_attention_layernorm = GatedNorm(config)


class AXK2Router(SigmoidRouter):
    """Experts of groups that are left out score 0, which those of the others may be below."""

    left_out = 0.0


class AXK2MoE(SharedMoE):
    router_cls = AXK2Router


class AXK2ForCausalLM(SparseMLAForCausalLM):
    architectures = ("AXK2ForCausalLM",)
    renamed_tensors = (
        *SparseMLAForCausalLM.renamed_tensors,
        (r"\.self_attn\.q_b_proj\.", ".self_attn.q_gate_proj."),
        (r"layernorm\.W_down\.", "layernorm.mlp.fc1."),
        (r"layernorm\.W_up\.", "layernorm.mlp.fc2."),
    )
    config_cls = AXK2Config
    attention_cls = AXK2Attention
    layer_cls = AXK2DecoderLayer
    moe_cls = AXK2MoE
