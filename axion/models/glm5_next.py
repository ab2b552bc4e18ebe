"""GLM-5-Next (Z.ai, 2026): three layers in four are Kimi delta attention; the others are sparse
latent attention without positions, to groups of neighbouring tokens that are chosen together. All
read and write several residual streams. Only the text part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.activation import get_activation
from axion.layers.attention import choose_tokens, entry_rows, pool_groups, tokens_of_groups
from axion.layers.context import ForwardContext, KVCache, State, StateTensor
from axion.layers.moe import ClampedExperts, Experts
from axion.layers.norm import RMSNorm
from axion.layers.rotary import Length, Positive
from axion.models.base import CausalLM, TextPart
from axion.models.config import Index, NumExperts, Size
from axion.models.glm_moe_dsa import GlmMoeDsaConfig
from axion.models.hybrid import HybridForCausalLM
from axion.models.hyper_connections import HyperConnectionConfig, HyperDecoder, HyperDecoderLayer
from axion.models.kimi_delta_attention import KimiDeltaAttention, KimiDeltaConfig
from axion.models.mla import UnrotatedMLA
from axion.models.moe import ClampedMLP, SharedMoE
from axion.models.sparse_mla import Indexer, SparseMLA, SparseMLAForCausalLM

# What begins with these is not about text, where the text part's fields stand beside it.
_NOT_TEXT = ("image_", "video_", "vision_")


@dataclass(kw_only=True)
class Glm5NextConfig(GlmMoeDsaConfig, HyperConnectionConfig, KimiDeltaConfig):
    """
    Attributes:
        index_kpool: tokens of a group, which are chosen together.
        index_kpool_always_select_tail: a token attends to those behind the last whole group, too.
            Without, the first tokens would attend to nothing, so it is always true.
        swiglu_limit: gates are clamped from above, what they multiply on both sides.
        linear_lower_bound: of the logarithm by which a state fades; None: there is none.
        qk_rope_head_dim, rope_interleave, indexer_rope_interleave: nothing is rotated.
    """

    renamed_fields = KimiDeltaConfig.renamed_fields
    sizes: ClassVar[dict[str, str]] = {
        **KimiDeltaConfig.sizes,
        "gate_lower_bound": "linear_lower_bound",
    }
    switches = ("safe_gate",)
    other_kind = "indexed_attention"

    head_dim: Index | None = None
    max_position_embeddings: Length = 1_048_576
    q_lora_rank: Size = 1536
    qk_nope_head_dim: Size = 256
    qk_rope_head_dim: Literal[0] = 0  # type: ignore[assignment]
    rope_interleave: bool = True  # type: ignore[assignment]
    indexer_rope_interleave: bool = True  # type: ignore[assignment]
    layer_types: list[Literal["linear_attention", "indexed_attention"]]  # type: ignore[assignment]
    num_experts: NumExperts = 288
    swiglu_limit: Positive = 10.0
    linear_num_key_heads: Size = 64
    linear_lower_bound: float | None = -5.0
    index_kpool: Size = 16
    index_kpool_always_select_tail: Literal[True] = True

    def __post_init__(self) -> None:
        self.head_dim = None  # what is rotated of a head, whatever is said: nothing
        super().__post_init__()
        if self.index_topk % self.index_kpool:
            raise ValueError(
                f"index_topk ({self.index_topk}) must be a multiple of index_kpool "
                f"({self.index_kpool})"
            )

    def is_indexed(self, layer_idx: int) -> bool:
        return self.layer_types[layer_idx] == "indexed_attention"

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Glm5NextConfig:  # type: ignore[override]
        """Read the text part's configuration, which may be a part of config.json or all of it."""
        text = config.get("text_config")
        if text is None:
            text = {k: value for k, value in config.items() if not k.startswith(_NOT_TEXT)}
        if not isinstance(text, dict):
            raise ModelLoadError(f"config.json: text_config must be an object, got {text!r:.80}.")
        tied = config.get("tie_word_embeddings", False)
        return super().from_dict(text | {"tie_word_embeddings": tied})

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        linear = config.get("linear_attn_config") or {}
        if linear and linear.get("safe_gate", True):
            bound = derived.get("linear_lower_bound", config.get("linear_lower_bound"))
            derived["linear_lower_bound"] = -5.0 if bound is None else bound
        if isinstance(kinds := config.get("layer_types"), list):
            other = {"full_attention": cls.other_kind}
            derived["layer_types"] = [other.get(kind, kind) for kind in map(str, kinds)]
        return derived, sources


class PooledIndexer(Indexer):
    """Scores groups of tokens, each by one key, which is a weighted mean of its tokens' keys."""

    def __init__(self, config: Glm5NextConfig, cache_idx: int, *options: Any) -> None:
        super().__init__(config, cache_idx, *options)
        self.group_size = size = config.index_kpool
        self.num_chosen = config.index_topk // size
        self.kv_cache_spec = self.kv_cache_spec._replace(stride=size)
        self.state_spec = {"tail": StateTensor((size - 1, 2 * self.head_dim))}
        for name, shape in {
            "index_kpool_compress_ape": (size, self.head_dim),
            "index_kpool_compress_gate": (self.head_dim, config.hidden_size),
        }.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape), requires_grad=False))

    def forward(  # type: ignore[override]
        self, q_latent: Tensor, hidden_states: Tensor, state: State, context: ForwardContext
    ) -> Tensor | None:
        """The tokens that each attends to, `[num_tokens, index_topk + index_kpool - 1]`, as
        `paged_attention` takes them; None: all."""
        cache = context.kv_caches[self.cache_idx]
        self.store(hidden_states, state, cache, context)
        weights = F.linear(hidden_states.float(), self.weights_proj.weight.float())
        groups = choose_tokens(
            self.queries(q_latent, context),
            None,
            weights * self.scale,
            cache,
            context,
            num_chosen=self.num_chosen,
        )
        if groups is None:
            return None
        return tokens_of_groups(groups, context, size=self.group_size)

    def store(
        self, hidden_states: Tensor, state: State, cache: KVCache, context: ForwardContext
    ) -> None:
        """Keep the keys of the groups that the step completes."""
        keys = self.k_norm(self.wk(hidden_states))
        gates = F.linear(hidden_states, self.index_kpool_compress_gate)
        tokens = torch.cat((keys, gates), dim=-1)
        keys = pool_groups(tokens, self.pool, state["tail"], context, size=self.group_size)
        rows = entry_rows(cache, context)
        cache.keys.store(context.slot_mapping[cache.group][rows], keys[rows, None])

    def pool(self, groups: Tensor) -> Tensor:
        """Keys and gates of groups, `[..., group_size, 2 * head_dim]`, to `[..., head_dim]`."""
        keys, gates = groups.chunk(2, dim=-1)
        shares = (gates.float() + self.index_kpool_compress_ape.float()).softmax(-2)
        return (shares.to(keys.dtype) * keys).sum(-2)


class Glm5NextAttention(UnrotatedMLA, SparseMLA):
    indexer_cls = PooledIndexer

    def __init__(self, config: Glm5NextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.kv_a_layernorm = RMSNorm(self.latent_dim, config.rms_norm_eps)
        if hasattr(self, "indexer"):
            self.state_spec = self.indexer.state_spec

    def index(
        self, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor | None:
        return self.indexer(q_latent, hidden_states, context.states[self.layer_idx], context)


class Glm5NextDeltaAttention(KimiDeltaAttention):
    """How fast a state fades may have a bound."""

    def __init__(self, config: Glm5NextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.lower_bound = config.linear_lower_bound
        # Buffers keep their dtype: how fast a state fades is finer than bfloat16.
        del self.dt_bias, self.A_log
        for name, size in {"dt_bias": self.key_size, "A_log": config.linear_num_key_heads}.items():
            self.register_buffer(name, torch.empty(size, dtype=torch.float32))

    def log_decay(self, decay: Tensor) -> Tensor:
        step = (decay.float() + self.dt_bias).unflatten(-1, (-1, self.k_dim))
        rate = self.A_log.exp()[:, None]
        if self.lower_bound is None:
            return -rate * F.softplus(step)
        return self.lower_bound * torch.sigmoid(rate * step)


class Glm5NextDecoder(HyperDecoder):
    """The mean of the streams is what is read at the end."""

    def __init__(self, config: Glm5NextConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        del self.hc_head

    def read(self, streams: Tensor) -> Tensor:
        return streams.mean(1)


class Glm5NextMoE(SharedMoE):
    mlp_cls = ClampedMLP

    def build_experts(self, config: Glm5NextConfig) -> Experts:  # type: ignore[override]
        return ClampedExperts(
            config.num_experts,
            config.hidden_size,
            config.moe_intermediate_size,
            get_activation("silu"),
            limit=config.swiglu_limit,
        )


class Glm5NextForConditionalGeneration(TextPart, HybridForCausalLM, SparseMLAForCausalLM):
    """Without what it sees with."""

    architectures = ("Glm5NextForConditionalGeneration",)
    renamed_tensors = (
        *TextPart.renamed_tensors,
        *SparseMLAForCausalLM.renamed_tensors,
        (r"\.hc_(attn|ffn)_(fn|base|scale)$", r".\1_hc.\2"),
        (r"\.self_attn\.forget_gate\.", ".self_attn."),
        (r"\.self_attn\.o_norm\.", ".self_attn.norm."),
    )
    ignored_tensors = (
        *CausalLM.ignored_tensors,
        r"(model\.)?visual\..*",
        r"model\.layers\.\d+\.shared_head\..*",
    )
    config_cls = Glm5NextConfig
    mixers = (
        ("linear_attention", Glm5NextDeltaAttention),
        ("indexed_attention", Glm5NextAttention),
    )
    mlp_cls = ClampedMLP
    moe_cls = Glm5NextMoE
    layer_cls = HyperDecoderLayer
    decoder_cls = Glm5NextDecoder
