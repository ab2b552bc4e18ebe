"""Mistral Large 4 (Mistral AI, 2026): GLM-5's sparse attention without positions in some layers,
over latents that several layers may share, whose queries grow with the position. Only the text
part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.linear import DenseLinear, Linear
from axion.layers.norm import LayerNorm, RMSNorm
from axion.layers.rotary import Length, Positive, RopeParameters, RotaryEmbedding, rotary_embedding
from axion.models.base import Decoder, TextPart
from axion.models.config import Index, NumExperts, Size, text_config
from axion.models.glm_moe_dsa import GlmMoeDsaAttention, GlmMoeDsaConfig
from axion.models.mistral4 import Mistral4MoE
from axion.models.sparse_mla import Indexer, SparseMLAForCausalLM

_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 2048.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.0,
}

# Mistral's own names, by which also transformers stores it.
_RENAMED_TENSORS = (
    (r"^tok_embeddings\.", "model.embed_tokens."),
    (r"^output\.", "lm_head."),
    (r"^(lerope|model\.rotary_emb)\.alpha$", "model.layers.0.self_attn.rotary_emb.alpha"),
    (r"\.attention\.", ".self_attn."),
    (r"\.wq\.", ".q_proj."),
    (r"\.wkv_a_with_mqa\.", ".kv_a_proj_with_mqa."),
    (r"\.wkv_b\.", ".kv_b_proj."),
    (r"\.wo\.", ".o_proj."),
    (r"\.kv_a_norm\.", ".kv_a_layernorm."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.ssmax_scaling\.s$", ".softmax_scaling.scale"),
    (r"\.ssmax_scaling\.b$", ".softmax_scaling.bias"),
    (r"\.feed_forward\.", ".mlp."),
    (r"(\.layers\.\d+)\.(gate|experts|shared_experts)\.", r"\1.mlp.\2."),
    (r"\.w1\.", ".gate_proj."),
    (r"\.w2\.", ".down_proj."),
    (r"\.w3\.", ".up_proj."),
)


@dataclass(kw_only=True)
class MistralLarge4Config(GlmMoeDsaConfig):
    """
    Attributes:
        no_rope_layers: 0 for each layer without, 1 for each with rotary positions; by default
            each `no_rope_layer_interval`th is without.
        kv_source_layers: for each layer the one whose latents it attends to; by default its own.
    """

    num_key_value_heads: Size | None = 64
    max_position_embeddings: Length = 1_048_576
    q_lora_rank: Literal[None] = None  # type: ignore[assignment]
    qk_nope_head_dim: Size = 64
    v_head_dim: Size = 128
    num_experts: NumExperts = 128
    num_experts_per_tok: NumExperts = 4
    moe_intermediate_size: Size = 6144
    first_k_dense_replace: Index = 1
    num_nextn_predict_layers: Index = 0
    norm_topk_prob: Literal[True] = True  # type: ignore[assignment]
    routed_scaling_factor: float = 1.0
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Size = 4
    kv_source_layers: list[Index] | None = None
    final_logit_softcapping: Positive = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = range(self.num_hidden_layers)
        if self.no_rope_layers is None:
            self.no_rope_layers = [int((i + 1) % self.no_rope_layer_interval != 0) for i in layers]
        if len(self.no_rope_layers) < len(layers):
            raise ValueError("no_rope_layers must have one entry for each layer")
        if self.kv_source_layers is None:
            self.kv_source_layers = list(layers)
        if len(self.kv_source_layers) != len(layers):
            raise ValueError(f"kv_source_layers must name {len(layers)} layers")
        self._check_sources()

    def _check_sources(self) -> None:
        """transformers keeps one layer's latents with positions and one's without to be shared."""
        shared: dict[bool, int] = {}
        for layer, source in enumerate(self.kv_source_layers):
            kind = bool(self.no_rope_layers[layer])
            if source == layer:
                if layer in self.kv_source_layers[layer + 1 :]:
                    shared[kind] = layer
            elif shared.get(kind) != source:
                raise ValueError(
                    f"kv_source_layers must name for layer {layer}, which is "
                    f"{'with' if kind else 'without'} rotary positions, itself or the last layer "
                    f"of that kind whose latents are shared ({shared.get(kind)}), not {source}"
                )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> MistralLarge4Config:  # type: ignore[override]
        return super().from_dict(text_config({"tie_word_embeddings": False} | config))

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        rope = config.get("rope_scaling") or config.get("rope_parameters") or _ROPE
        return super()._derive(config | {"rope_scaling": rope})


class LearnedRope(RotaryEmbedding):
    """A rope whose frequencies are multiplied by learned factors."""

    def __init__(self, rope: RopeParameters, head_dim: int) -> None:
        super().__init__(rope, head_dim)
        self.base = rotary_embedding(rope, head_dim)
        self.attention_factor = self.base.attention_factor
        # Logarithms of the factors. A buffer keeps its dtype.
        self.register_buffer("alpha", torch.empty(head_dim // 2, dtype=torch.float32))

    def token_frequencies(self, rope_lengths: Tensor) -> Tensor:
        return self.base.token_frequencies(rope_lengths) * self.alpha.exp()

    def max_length(self) -> int:
        return self.base.max_length()

    def cache_key(self, num_prompt_tokens: int) -> int:
        return self.base.cache_key(num_prompt_tokens)


class SoftmaxScaling(nn.Module):
    """Queries grow with the logarithm of the position, those of each head at a rate of its own."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(num_heads), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(num_heads), requires_grad=False)

    def forward(self, q: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, num_heads, head_dim]` to the same."""
        log_position = context.positions.float().log1p().to(q.dtype)
        return q * (self.scale * log_position[:, None] + self.bias)[..., None]


class MistralLarge4Indexer(Indexer):
    def __init__(self, config: MistralLarge4Config, *args: Any) -> None:
        super().__init__(config, *args)
        self.q_input_norm = LayerNorm(config.hidden_size, eps=1e-6)
        self.softmax_scaling = SoftmaxScaling(config.index_n_heads)

    def queries(self, q_latent: Tensor, context: ForwardContext) -> Tensor:
        q = super().queries(self.q_input_norm(q_latent), context)
        return self.softmax_scaling(q, context)


def _leave(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """In place of a rotation: there is none."""
    return x


class MistralLarge4Attention(GlmMoeDsaAttention):
    indexer_cls = MistralLarge4Indexer

    def __init__(self, config: MistralLarge4Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        hidden_size, num_heads = config.hidden_size, config.num_attention_heads
        self.softmax_scaling = SoftmaxScaling(num_heads)
        self.kv_a_layernorm = RMSNorm(self.latent_dim, config.rms_norm_eps)
        self.has_rope = bool(config.no_rope_layers[layer_idx])
        if not self.has_rope:
            self.nope_dim, self.rope_dim = self.head_dim, 0
            self.kv_cache_spec = self.kv_cache_spec._replace(k_head_dim=self.latent_dim)
            self.kv_a_proj_with_mqa = Linear(
                hidden_size, self.latent_dim, bias=config.attention_bias
            )
            self.kv_b_proj = DenseLinear(self.latent_dim, num_heads * (self.head_dim + self.v_dim))
            if hasattr(self, "indexer"):
                self.indexer.rotate = _leave
        self.kv_layer_idx = config.kv_source_layers[layer_idx]
        if self.is_shared:
            del self.kv_a_proj_with_mqa, self.kv_a_layernorm
            self.kv_cache_spec = self.kv_cache_spec._replace(num_kv_heads=0)

    def attend(
        self, q: Tensor, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor:
        return super().attend(self.softmax_scaling(q, context), q_latent, hidden_states, context)

    def rotate(self, x: Tensor, context: ForwardContext) -> Tensor:
        return super().rotate(x, context) if self.has_rope else x


class MistralLarge4MoE(Mistral4MoE):
    """A Mistral 4's."""


class MistralLarge4Decoder(Decoder):
    def __init__(self, config: MistralLarge4Config, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        rotary_emb = LearnedRope(config.rope_parameters, config.qk_rope_head_dim)
        for layer in self.layers:  # one for all; a checkpoint holds it beside them
            layer.self_attn.rotary_emb = rotary_emb


class MistralLarge4ForConditionalGeneration(TextPart, SparseMLAForCausalLM):
    """Without what it sees with."""

    architectures = ("MistralLarge4ForConditionalGeneration",)
    renamed_tensors = (
        *TextPart.renamed_tensors,
        *SparseMLAForCausalLM.renamed_tensors,
        *_RENAMED_TENSORS,
    )
    ignored_tensors = (
        *TextPart.ignored_tensors,
        r"(model\.)?mtp_dspark\..*",
        r"(vision_encoder|pre_mm_projector_norm|patch_merger|vision_language_adapter)\..*",
    )
    config_cls = MistralLarge4Config
    attention_cls = MistralLarge4Attention
    decoder_cls = MistralLarge4Decoder
    moe_cls = MistralLarge4MoE
    config: MistralLarge4Config

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        cap = self.config.final_logit_softcapping
        return cap * torch.tanh(super().compute_logits(hidden_states) / cap)
