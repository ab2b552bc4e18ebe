"""Dots 3 Note (rednote, 2026): DeepSeek-V3.2's sparse attention beside latent attention to a
window, which has sizes of its own; both rescale their latents and gate their heads. Only the text
part."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from torch import Tensor

from axion.errors import ModelLoadError
from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.layers.norm import RMSNorm
from axion.layers.rotary import Length, RopeParameters, apply_rotary_interleaved
from axion.models.base import MLP
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.moe import SharedMoE, tensors_behind
from axion.models.sparse_mla import SparseMLA, SparseMLAConfig, SparseMLAForCausalLM

Kind = Literal["indexed_attention", "full_attention", "sliding_attention"]

_SWA_FIELDS = {
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1024,
    "kv_lora_rank": 1024,
    "head_dim": 256,
    "qk_nope_head_dim": 192,
    "v_head_dim": 128,
}
# What of config.json is not about text, where the text part's configuration stands beside it.
_NOT_TEXT = {
    *("vision_config", "audio_config", "image_token_id", "video_token_id", "audio_token_id"),
    "text_config",
}


class SlidingSizes(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of the layers that attend to a window."""

    num_attention_heads: Size
    num_key_value_heads: Size
    q_lora_rank: Size
    kv_lora_rank: Size
    head_dim: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size


@dataclass(kw_only=True)
class Dots3NoteConfig(SparseMLAConfig):
    """
    Attributes:
        sliding_window: tokens in the window; `sliding_window_size` before transformers 5.
        sliding_sizes: of the layers with one. transformers writes what differs into
            `per_layer_config`; before, it stood in fields that begin with `swa_`.
        ropes: of each kind of layer.
        moe_layer_freq: without `mlp_layer_types`, of the layers from `first_k_dense_replace` on
            each so many-th has experts; or for each layer whether it has.
        shared_experts_intermediate_size: of each expert that every token passes;
            `moe_shared_expert_intermediate_size` before transformers 5.
    """

    renamed_fields = (("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"),)

    num_key_value_heads: Size | None = 128
    head_dim: Size | None = 256
    max_position_embeddings: Length = 524_288
    rms_norm_eps: Epsilon = 1e-5
    q_lora_rank: Size = 1024
    mlp_bias: Literal[False] = False  # type: ignore[assignment]
    num_experts: NumExperts = 256
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 1536
    first_k_dense_replace: Index = 1
    moe_layer_freq: Size | list[int] = 1  # type: ignore[assignment]
    norm_topk_prob: bool = True
    indexer_types: None = None
    layer_types: list[Kind] | None = None  # type: ignore[assignment]
    sliding_window: Size | None = 512
    sliding_sizes: SlidingSizes
    ropes: dict[Kind, RopeParameters]
    shared_experts_intermediate_size: Size = 1536

    def __post_init__(self) -> None:
        layers, every = range(self.num_hidden_layers), self.moe_layer_freq
        if self.mlp_layer_types is None:
            has_experts = every if isinstance(every, list) else [i % every == 0 for i in layers]
            if len(has_experts) < len(layers):
                raise ValueError("moe_layer_freq must have one entry for each layer")
            self.mlp_layer_types = [
                "sparse" if i >= self.first_k_dense_replace and has_experts[i] else "dense"
                for i in layers
            ]
        head_dim = self.head_dim
        super().__post_init__()
        self.head_dim = head_dim  # of the windows too, where these have no other
        kinds = self.layer_types or []  # from config.json they are never left out
        if len(kinds) not in (0, len(layers)):
            raise ValueError(f"layer_types must name {len(layers)} layers")
        if missing := set(kinds) - self.ropes.keys():
            raise ValueError(f"rope_parameters has none for {', '.join(sorted(missing))}")
        sizes = self.sliding_sizes
        if "sliding_attention" not in kinds:
            return
        if sizes.num_key_value_heads != sizes.num_attention_heads:
            raise ValueError(
                "num_key_value_heads must be num_attention_heads also in the layers with a window"
            )
        if sizes.head_dim != sizes.qk_nope_head_dim + sizes.qk_rope_head_dim:
            raise ValueError(
                f"head_dim ({sizes.head_dim}) of the layers with a window must be qk_nope_head_dim "
                f"({sizes.qk_nope_head_dim}) + qk_rope_head_dim ({sizes.qk_rope_head_dim})"
            )

    def of_layer(self, layer_idx: int) -> Dots3NoteConfig:
        """The same with the sizes of the layer's attention."""
        own = copy(self)
        if self.window(layer_idx) is not None:
            vars(own).update(msgspec.structs.asdict(self.sliding_sizes))
        return own

    def chooser(self, layer_idx: int) -> int | None:
        return layer_idx if self.layer_types[layer_idx] == "indexed_attention" else None

    def window(self, layer_idx: int) -> int | None:
        is_sliding = self.layer_types[layer_idx] == "sliding_attention"
        return self.sliding_window if is_sliding else None

    def rope(self, layer_idx: int) -> RopeParameters:
        return self.ropes[self.layer_types[layer_idx]]

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        kinds = _layer_types(config)
        # The part of a head that is rotated follows from its sizes, whatever is written.
        ropes = {
            kind: replace(
                RopeParameters.from_config(
                    {"rope_parameters": rope},
                    max_position_embeddings=config.get(
                        "max_position_embeddings", cls.max_position_embeddings
                    ),
                    rope_theta=_thetas(config)[kind],
                ),
                partial_rotary_factor=1.0,
            )
            for kind, rope in _ropes(config, kinds).items()
        }
        derived, sources = super()._derive(config | {"rope_parameters": None, "rope_scaling": None})
        derived |= {
            "layer_types": kinds,
            "ropes": ropes,
            "sliding_sizes": cls._sliding_sizes(config, kinds),
        }
        if config.get("sliding_window") is None:
            derived["sliding_window"] = config.get("sliding_window_size", 512)
        swa_fields = {f"swa_{name}" for name in (*_SWA_FIELDS, "qk_rope_head_dim", "rope_theta")}
        legacy = {"use_dsa", "use_sliding_window", "sliding_window_size", "per_layer_config"}
        return derived, sources | swa_fields | legacy

    @classmethod
    def _sliding_sizes(cls, config: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
        if (of_layers := config.get("per_layer_config")) is None:
            sizes = {name: config.get(f"swa_{name}", size) for name, size in _SWA_FIELDS.items()}
            rope_dim = sizes["head_dim"] - sizes["qk_nope_head_dim"]
            return sizes | {"qk_rope_head_dim": config.get("swa_qk_rope_head_dim", rope_dim)}
        sliding = {str(i) for i, kind in enumerate(kinds) if kind == "sliding_attention"}
        own = [dict(sizes) for sizes in of_layers.values()]
        named = {str(name).lstrip("0") or "0" for name in of_layers}  # "02" of many layers
        if named not in (sliding, set()) or any(sizes != own[0] for sizes in own):
            raise ModelLoadError(
                "config.json: per_layer_config must name the layers that are sliding_attention, "
                "and say the same of all."
            )
        return {
            name: config.get(name, getattr(cls, name, 256))
            for name in (*_SWA_FIELDS, "qk_rope_head_dim")
        } | (own[0] if own else {})

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Dots3NoteConfig:  # type: ignore[override]
        """Read the text part's configuration, which may be a part of config.json or all of it."""
        text = config.get("text_config")
        if text is None:
            text = {name: value for name, value in config.items() if name not in _NOT_TEXT}
        tied = config.get("tie_word_embeddings", False)
        return super().from_dict(text | {"tie_word_embeddings": tied})


def _layer_types(config: dict[str, Any]) -> list[str]:
    """The kind of each layer; older files call sparse attention full."""
    use_dsa = config.get("use_dsa", None if "per_layer_config" in config else True)
    full = "full_attention" if use_dsa is False else "indexed_attention"
    kinds = config.get("layer_types")
    if kinds is None:
        slides = config.get("use_sliding_window", True)
        return [
            "sliding_attention" if slides and i > 1 and i % 4 != 1 else full
            for i in range(config.get("num_hidden_layers", 0))
        ]
    if use_dsa is None:
        return kinds
    return [full if kind in ("full_attention", "indexed_attention") else kind for kind in kinds]


def _thetas(config: dict[str, Any]) -> dict[str, float]:
    theta = config.get("rope_theta", 80_000_000.0)
    has_ropes = config.get("rope_parameters") or config.get("rope_scaling")
    sliding = theta if has_ropes else config.get("swa_rope_theta", 50_000.0)
    return {"indexed_attention": theta, "full_attention": theta, "sliding_attention": sliding}


def _ropes(config: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
    """The rope of each kind of layer, as config.json writes ropes."""
    ropes = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if ropes and all(isinstance(rope, dict) for rope in ropes.values()):
        return {kind: ropes[kind] for kind in set(kinds) & ropes.keys()}
    return dict.fromkeys(kinds, ropes)


class Dots3NoteAttention(SparseMLA):
    rotate_index = staticmethod(apply_rotary_interleaved)

    def __init__(self, config: Dots3NoteConfig, layer_idx: int) -> None:
        config = config.of_layer(layer_idx)
        super().__init__(config, layer_idx)
        hidden_size, eps = config.hidden_size, config.rms_norm_eps
        self.scale = self.head_dim**-0.5
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps)
        self.kv_a_layernorm = RMSNorm(self.latent_dim, eps)
        self.k_rope_only_layernorm = RMSNorm(self.rope_dim, eps)
        self.q_latent_scale = (hidden_size / config.q_lora_rank) ** 0.5
        self.latent_scale = (hidden_size / self.latent_dim) ** 0.5
        self.g_proj = Linear(hidden_size, config.num_attention_heads)

    def compress_q(self, hidden_states: Tensor) -> Tensor:
        return super().compress_q(hidden_states) * self.q_latent_scale

    def compress_kv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        latent, k_rope = super().compress_kv(hidden_states)
        return latent * self.latent_scale, self.k_rope_only_layernorm(k_rope)

    def attend(
        self, q: Tensor, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor:
        out = super().attend(q, q_latent, hidden_states, context)
        return out * self.g_proj(hidden_states).sigmoid()[..., None]


class Dots3NoteMoE(SharedMoE):
    def __init__(self, config: Dots3NoteConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        size = config.n_shared_experts * config.shared_experts_intermediate_size
        self.shared_experts = MLP(replace(config, intermediate_size=size), layer_idx)


class Dots3NoteForCausalLM(SparseMLAForCausalLM):
    architectures = ("Dots3NoteForCausalLM",)
    config_cls = Dots3NoteConfig
    attention_cls = Dots3NoteAttention
    moe_cls = Dots3NoteMoE

    def __init__(self, config: Dots3NoteConfig) -> None:
        super().__init__(config)
        self.ignored_tensors += (
            *tensors_behind(config.num_hidden_layers, 1),
            r"model\.mtp\..*",
        )
