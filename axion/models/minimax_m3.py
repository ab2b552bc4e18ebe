"""MiniMax-M3 (MiniMax, 2026): most layers attend to blocks of tokens that a small attention of
their own chooses, others for each head of keys. Of the model that also sees, only the text part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.activation import apply_sigmoid_gate, get_activation
from axion.layers.attention import choose_blocks, paged_attention
from axion.layers.context import ForwardContext, KVCacheSpec
from axion.layers.linear import PackedLinear
from axion.layers.moe import Experts, Router, SigmoidRouter
from axion.layers.norm import OffsetRMSNorm
from axion.layers.rotary import Length, Positive, apply_rotary
from axion.models.base import MLP, Attention, TextPart
from axion.models.config import DecoderConfig, Index, NumExperts, Size, text_config
from axion.models.indexed import IndexedForCausalLM
from axion.models.minimax_m2 import MiniMaxM2ForCausalLM
from axion.models.moe import MoE, MoEConfig

# What `sparse_attention_config` calls a field, and what transformers writes.
_INDEX_FIELDS = {
    "sparse_num_index_heads": "index_n_heads",
    "sparse_index_dim": "index_head_dim",
    "sparse_block_size": "index_block_size",
    "sparse_topk_blocks": "index_topk_blocks",
    "sparse_local_block": "index_local_blocks",
}


@dataclass(kw_only=True)
class MiniMaxM3Config(MoEConfig):
    """
    Attributes:
        intermediate_size: of an expert.
        dense_intermediate_size: of the MLP of layers without experts.
        shared_intermediate_size: of the expert that every token passes.
        rotary_dim: not read: `partial_rotary_factor` says it.
        hidden_act: not read: the gate is gpt-oss's.
        num_nextn_predict_layers: layers behind the last, which guess more tokens; not read.
        swiglu_alpha, swiglu_limit: see `apply_sigmoid_gate`.
        index_n_heads: heads that choose, each for as many heads of keys.
        index_head_dim: their size.
        index_block_size, index_topk_blocks, index_local_blocks: `block_size`, `num_chosen` and
            `num_local` of `choose_blocks`.
        layer_types: the kind of attention of each layer; by default all attend to all tokens.
        mlp_layer_types: says of each layer whether it has experts; by default all have.
    """

    default_rope_theta = 5_000_000.0

    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 128
    max_position_embeddings: Length = 524_288
    rotary_dim: Index = 64
    num_experts: NumExperts = 128
    num_experts_per_tok: NumExperts = 4
    dense_intermediate_size: Size = 12288
    shared_intermediate_size: Size = 3072
    routed_scaling_factor: float = 2.0
    scoring_func: Literal["sigmoid"] = "sigmoid"
    use_qk_norm: Literal[True] = True
    num_nextn_predict_layers: Index = 0
    swiglu_alpha: float = 1.702
    swiglu_limit: Positive = 7.0
    mlp_layer_types: list[Literal["dense", "sparse"]] | None = None
    layer_types: list[Literal["full_attention", "minimax_m3_sparse"]] | None = None
    index_n_heads: Size = 4
    index_head_dim: Size = 128
    index_block_size: Size = 128
    index_topk_blocks: Size = 16
    index_local_blocks: Index = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hidden_act = "silu"
        count = self.num_hidden_layers
        self.mlp_layer_types = self.mlp_layer_types or ["sparse"] * count
        self.layer_types = self.layer_types or ["full_attention"] * count
        if not len(self.layer_types) == len(self.mlp_layer_types) == count:
            raise ValueError(f"layer_types and mlp_layer_types must name {count} layers")
        if "minimax_m3_sparse" not in self.layer_types:
            return
        if self.num_key_value_heads % self.index_n_heads:
            raise ValueError(
                f"index_n_heads ({self.index_n_heads}) must divide num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.index_topk_blocks < self.index_local_blocks:
            raise ValueError(
                f"index_topk_blocks ({self.index_topk_blocks}) must not be below "
                f"index_local_blocks ({self.index_local_blocks})"
            )
        if self.index_head_dim < int(self.head_dim * self.rope_parameters.partial_rotary_factor):
            raise ValueError(
                f"index_head_dim ({self.index_head_dim}) must not be below what is rotated of "
                f"head_dim ({self.head_dim})"
            )

    def norm(self) -> nn.Module:
        return OffsetRMSNorm(self.hidden_size, self.rms_norm_eps)

    def is_sparse(self, layer_idx: int) -> bool:
        return self.mlp_layer_types[layer_idx] == "sparse"

    def is_indexed(self, layer_idx: int) -> bool:
        """Whether the layer attends to blocks that are chosen."""
        return self.layer_types[layer_idx] == "minimax_m3_sparse"

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """Checkpoints have `sparse_attention_config`; what transformers writes has not."""
        derived, sources = super()._derive(config)
        index = config.get("sparse_attention_config") or {}
        if not isinstance(index, dict):
            raise ModelLoadError(
                f"config.json: sparse_attention_config must be an object, got {index!r:.80}."
            )
        for key in index.keys() - _INDEX_FIELDS.keys() - {"sparse_attention_freq"}:
            cls._check_undeclared(key, index[key])
        derived |= {name: index[key] for key, name in _INDEX_FIELDS.items() if key in index}
        for name, older, kinds in (
            ("layer_types", "sparse_attention_freq", ("full_attention", "minimax_m3_sparse")),
            ("mlp_layer_types", "moe_layer_freq", ("dense", "sparse")),
        ):
            switches = (config | index).get(older)
            if config.get(name) is not None or switches is None:
                continue
            if not isinstance(switches, list):
                raise ModelLoadError(
                    f"config.json: {older} must be a list of 0 and 1, got {switches!r:.80}."
                )
            derived[name] = [kinds[bool(switch)] for switch in switches]
        return derived, sources | {"sparse_attention_config", "moe_layer_freq"}


class BlockIndexer(nn.Module):
    """Chooses the blocks that each token attends to, for each head of keys.

    Its keys are kept in a KV cache of their own.
    """

    def __init__(self, config: MiniMaxM3Config, cache_idx: int) -> None:
        super().__init__()
        num_heads, head_dim = config.index_n_heads, config.index_head_dim
        self.cache_idx, self.head_dim = cache_idx, head_dim
        self.heads_per_head = config.num_key_value_heads // num_heads
        self.block_size = config.index_block_size
        self.num_chosen, self.num_local = config.index_topk_blocks, config.index_local_blocks
        self.max_attended = self.num_chosen * self.block_size
        self.kv_cache_spec = KVCacheSpec(1, head_dim, 0)
        self.qk_proj = PackedLinear(
            config.hidden_size, {"q_proj": num_heads * head_dim, "k_proj": head_dim}
        )
        self.q_norm = OffsetRMSNorm(head_dim, config.rms_norm_eps)
        self.k_norm = OffsetRMSNorm(head_dim, config.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, tables: tuple[Tensor, Tensor], context: ForwardContext
    ) -> Tensor | None:
        """As `choose_blocks`.

        Args:
            tables: cosines and sines, of the rope of the layer's attention.
        """
        q, k = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qk_proj(hidden_states))
        chosen = choose_blocks(
            apply_rotary(self.q_norm(q), *tables),
            apply_rotary(self.k_norm(k), *tables)[:, 0],
            context.kv_caches[self.cache_idx],
            context,
            block_size=self.block_size,
            num_chosen=self.num_chosen,
            num_local=self.num_local,
        )
        return None if chosen is None else chosen.repeat_interleave(self.heads_per_head, dim=1)


class MiniMaxM3Attention(Attention):
    def __init__(self, config: MiniMaxM3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_norm = OffsetRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = OffsetRMSNorm(config.head_dim, config.rms_norm_eps)
        if config.is_indexed(layer_idx):
            # Behind the layers' own caches: see `IndexedForCausalLM`.
            self.indexer = BlockIndexer(config, config.num_hidden_layers + layer_idx)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        q, k, v = self.project_qkv(hidden_states)
        q, k = self.normalize_qk(q, k)
        q, k = self.rotate_qk(q, k, context)
        chosen = None
        if hasattr(self, "indexer"):
            tables = self.rotary_emb(context, hidden_states.dtype)
            chosen = self.indexer(hidden_states, tables, context)
        cache = context.kv_caches[self.layer_idx]
        out = paged_attention(q, k, v, cache, context, scale=self.scale, chosen=chosen)
        return self.o_proj(out.flatten(1))


class MiniMaxM3MLP(MLP):
    def __init__(self, config: MiniMaxM3Config, layer_idx: int, size: int) -> None:
        super().__init__(replace(config, intermediate_size=size), layer_idx)
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        return apply_sigmoid_gate(gate, up, alpha=self.alpha, limit=self.limit)


class MiniMaxM3Experts(Experts):
    def __init__(self, config: MiniMaxM3Config) -> None:
        super().__init__(
            config.num_experts,
            config.hidden_size,
            config.moe_intermediate_size,
            get_activation(config.hidden_act),
        )
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def activate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return apply_sigmoid_gate(gate, up, alpha=self.alpha, limit=self.limit)


class MiniMaxM3MoE(MoE):
    """Beside the experts that are chosen there is one that every token passes."""

    def __init__(self, config: MiniMaxM3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.shared_experts = MiniMaxM3MLP(config, layer_idx, config.shared_intermediate_size)

    def router(self, config: MiniMaxM3Config) -> Router:
        return SigmoidRouter(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            norm_topk_prob=True,
            scaling_factor=config.routed_scaling_factor,
        )

    def build_experts(self, config: MiniMaxM3Config) -> Experts:  # type: ignore[override]
        return MiniMaxM3Experts(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.shared_experts(hidden_states)


class MiniMaxM3VLForCausalLM(IndexedForCausalLM, MiniMaxM2ForCausalLM):
    architectures = ("MiniMaxM3VLForCausalLM",)
    renamed_tensors = (
        *MiniMaxM2ForCausalLM.renamed_tensors,
        (r"\.self_attn\.index_([qk]_(proj|norm))\.", r".self_attn.indexer.\1."),
    )
    ignored_tensors = (*MiniMaxM2ForCausalLM.ignored_tensors, r"(.*\.)?mtp\..*")
    config_cls: ClassVar[type[DecoderConfig]] = MiniMaxM3Config
    attention_cls = MiniMaxM3Attention
    moe_cls = MiniMaxM3MoE
    config: MiniMaxM3Config

    def mlp(self, layer_idx: int) -> nn.Module:
        if self.config.is_sparse(layer_idx):
            return super().mlp(layer_idx)
        return MiniMaxM3MLP(self.config, layer_idx, self.config.dense_intermediate_size)


@dataclass(kw_only=True)
class MiniMaxM3SparseConfig(MiniMaxM3Config):
    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> MiniMaxM3SparseConfig:
        """Read the text part's configuration; its embedding is tied where either says so."""
        text = text_config({"tie_word_embeddings": False, **config})
        tied = text["tie_word_embeddings"] or config["text_config"].get("tie_word_embeddings")
        return super().from_dict(text | {"tie_word_embeddings": bool(tied)})


class MiniMaxM3SparseForConditionalGeneration(TextPart, MiniMaxM3VLForCausalLM):
    """Without what it sees with."""

    architectures = ("MiniMaxM3SparseForConditionalGeneration",)
    renamed_tensors = (*TextPart.renamed_tensors, *MiniMaxM3VLForCausalLM.renamed_tensors)
    ignored_tensors = (
        *TextPart.ignored_tensors,
        *MiniMaxM3VLForCausalLM.ignored_tensors,
        r"patch_merge_mlp\..*",
    )
    config_cls = MiniMaxM3SparseConfig
