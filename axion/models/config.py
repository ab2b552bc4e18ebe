"""What config.json says about a model, under its own names."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from torch import nn

from axion.errors import ModelLoadError
from axion.layers.norm import LayerNorm, RMSNorm
from axion.layers.rotary import Length, RopeParameters

logger = logging.getLogger("axion.models")

# Bounds far above any real model keep a hostile config from filling memory before the first
# tensor's shape is compared.
Size = Annotated[int, msgspec.Meta(gt=0, le=2**24)]
Index = Annotated[int, msgspec.Meta(ge=0, le=2**24)]
NumLayers = Annotated[int, msgspec.Meta(gt=0, le=2**10)]
NumExperts = Annotated[int, msgspec.Meta(gt=0, le=2**11)]
Epsilon = Annotated[float, msgspec.Meta(ge=0, lt=1)]

ConfigT = TypeVar("ConfigT", bound="BaseConfig")

_ROPE_FIELDS = {
    *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"),
    "original_max_position_embeddings",
}

# Fields that say nothing about how hidden states are computed from token ids.
_HARMLESS = frozenset(
    """
    architectures auto_map model_type name_or_path tokenizer_class transformers_version dtype
    torch_dtype torchscript use_bfloat16 use_cache attn_implementation pretraining_tp
    initializer_range gradient_checkpointing chunk_size_feed_forward pruned_heads
    model_max_length max_sequence_length max_length min_length max_new_tokens do_sample
    early_stopping num_beams num_beam_groups num_return_sequences diversity_penalty temperature
    top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size remove_invalid_values exponential_decay_length_penalty
    bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id
    tie_word_embeddings max_window_layers directionality output_past
    return_dict return_dict_in_generate output_attentions output_hidden_states output_scores
    prefix finetuning_task task_specific_params problem_type id2label label2id num_labels
    bos_token_id eos_token_id eod_token_id pad_token_id sep_token_id unk_token_id
    decoder_start_token_id cross_attention_hidden_size tf_legacy_loss unsloth_fixed
    unsloth_version is_llama_config reorder_and_upcast_attn n_ctx init_std layerdrop
    quantization_config compression_config init_device embedding_fraction
    num_logits_to_keep z_loss_coefficient use_mamba_kernels use_mambapy use_falcon_mambapy
    use_associative_scan time_step_scale time_step_min time_step_max time_step_floor
    time_step_init_scheme rescale_prenorm_residual mamba_ssm_dtype mamba_ssm_cache_dtype
    moe_shared_expert_overlap mtp_layers_block_type mtp_hybrid_override_pattern
    mtp_num_hidden_layers mtp_use_dedicated_embeddings
    output_router_logits router_aux_loss_coef router_jitter_noise aux_loss_alpha seq_aux ep_size
    """.split()  # noqa: SIM905
)
_HARMLESS_PATTERN = re.compile(r"_.*|.*dropout.*|.*_pdrop|(pooler|summary)_.*")

# Fields with which some family computes something else, and the values that leave it out. A
# family that honours one declares it; for all others any other value is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "is_causal": (None, True),
    "use_bidirectional_attention": (None, False),
    "sliding_window": (None,),
    "sliding_window_pattern": (None, 1),
    "use_sliding_window": (None, False),
    "attention_chunk_size": (None,),
    "layer_types": (None,),
    "no_rope_layers": (None, []),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "clip_qkv": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "logits_scaling": (None, 1),
    "logit_scale": (None, 1),
    "scale_emb": (None, 1),
    "scale_depth": (None,),
    "dim_model_base": (None,),
    "mup_width_multiplier": (None, 1),
    "alibi": (None, False),
    "position_embedding_type": (None, "rope", "rotary"),
    "rope_interleaved": (None, False),
    "rope_interleave": (None, False),
    "rope_local_base_freq": (None,),
    "rotary_pct": (None, 1),
    "rotary_dim": (None,),
    "qkv_bias": (None, False),
    "use_bias": (None, False),
    "use_qkv_bias": (None, False),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "n_routed_experts": (None, 0),
    "kv_lora_rank": (None,),
    "num_nextn_predict_layers": (None, 0),
    "parallel_attn": (None, False),
}


def is_harmless(name: str) -> bool:
    """Whether a field of config.json says nothing about how hidden states are computed."""
    return name in _HARMLESS or _HARMLESS_PATTERN.fullmatch(name) is not None


@dataclass(kw_only=True)
class BaseConfig:
    """A dataclass of the fields that a family honours.

    Attributes:
        renamed_fields: what config.json calls a field, and its name here.
    """

    renamed_fields: ClassVar[tuple[tuple[str, str], ...]] = ()

    @classmethod
    def from_dict(cls: type[ConfigT], config: dict[str, Any]) -> ConfigT:
        """Read config.json.

        Fields that the class does not declare are left out if they are known to be harmless,
        refused if they are known to change what is computed, and logged otherwise.

        Raises:
            ModelLoadError: a field is missing, has the wrong kind of value, or asks for
                something that this architecture does not compute here; the message names it.
        """
        declared = {field.name for field in fields(cls)}
        renamed = {new: config[name] for name, new in cls.renamed_fields if name in config}
        config = {
            name: value for name, value in config.items() if name not in dict(cls.renamed_fields)
        } | renamed
        derived, sources = cls._derive(config)
        for name, value in config.items():
            if name not in declared | sources:
                cls._check_undeclared(name, value)
        known = {name: config[name] for name in declared & config.keys()}
        try:
            return msgspec.convert(known | derived, cls)
        except msgspec.ValidationError as error:
            raise ModelLoadError(f"config.json: {error}.") from None

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """Fields that are not what config.json calls by their names, and what they come from."""
        return {}, set()

    @classmethod
    def _check_undeclared(cls, name: str, value: Any) -> None:
        if name == "layer_types" and isinstance(value, list):
            value = [kind for kind in value if kind != "full_attention"] or None
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise ModelLoadError(
                    f"config.json: {name}={str(value)[:80]} changes what the model computes and "
                    "is not supported for this architecture."
                )
        elif not is_harmless(name):
            logger.warning("config.json: unknown field %r is ignored", name[:80])


@dataclass(kw_only=True)
class DecoderConfig(BaseConfig):
    """The fields that a standard decoder honours; a family adds its own.

    Attributes:
        head_dim: may differ from `hidden_size / num_attention_heads`, its default.
        num_key_value_heads: `num_attention_heads` by default; fewer is grouped-query attention.
    """

    default_rope_theta: ClassVar[float] = 10_000.0
    default_partial_rotary_factor: ClassVar[float] = 1.0

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: NumLayers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Length = 2048
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters

    def __post_init__(self) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim < 1:
            raise ValueError("hidden_size must not be below num_attention_heads without head_dim")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )

    @property
    def output_bias(self) -> bool:
        """Whether attention's output projection is biased; its input is if `attention_bias`."""
        return self.attention_bias

    def norm(self) -> nn.Module:
        """A norm over the hidden size, of the kind that the family has around its blocks."""
        return RMSNorm(self.hidden_size, self.rms_norm_eps)

    def window(self, layer_idx: int) -> int | None:
        """How many tokens a token of this layer attends to, itself included; None: all."""
        return None

    def rope(self, layer_idx: int) -> RopeParameters:
        """The layer's rotary embedding."""
        return self.rope_parameters

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        rope_parameters = RopeParameters.from_config(
            config,
            max_position_embeddings=config.get(
                "max_position_embeddings", cls.max_position_embeddings
            ),
            rope_theta=cls.default_rope_theta,
            partial_rotary_factor=cls.default_partial_rotary_factor,
        )
        return {"rope_parameters": rope_parameters}, _ROPE_FIELDS


@dataclass(kw_only=True)
class GPTConfig(DecoderConfig):
    """As GPT-2 and those after it write theirs: LayerNorms, and an MLP four times as wide as
    the model where its width is not given."""

    renamed_fields = (
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_inner", "intermediate_size"),
        ("n_positions", "max_position_embeddings"),
        ("activation_function", "hidden_act"),
    )

    hidden_act: str = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, self.layer_norm_epsilon)

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        if config.get("intermediate_size") is None and isinstance(config.get("hidden_size"), int):
            derived["intermediate_size"] = 4 * config["hidden_size"]
        return derived, sources


@dataclass(kw_only=True)
class WindowConfig(DecoderConfig):
    """A decoder some of whose layers, or all, attend to a window; the windowed ones are called
    `sliding_attention`, the others `full_attention`.

    Attributes:
        sliding_window: tokens in the window; None: no layer has one.
        sliding_window_pattern: without `layer_types` every so many-th layer attends to all tokens;
            None: none does.
        layer_types: the kind of each layer.
    """

    sliding_window: Size | None = 4096
    sliding_window_pattern: Size | None = None
    layer_types: list[Literal["sliding_attention", "full_attention"]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types must name {self.num_hidden_layers} layers, not "
                f"{len(self.layer_types)}"
            )

    def is_sliding(self, layer_idx: int) -> bool:
        """Whether the layer is of the kind that attends to a window."""
        if self.layer_types is not None:
            return self.layer_types[layer_idx] == "sliding_attention"
        return not self.sliding_window_pattern or (layer_idx + 1) % self.sliding_window_pattern > 0

    def window(self, layer_idx: int) -> int | None:
        return self.sliding_window if self.is_sliding(layer_idx) else None


@dataclass(kw_only=True)
class SwitchedWindowConfig(WindowConfig):
    """The windows have a switch, and without `layer_types` the first layers have none (Qwen2)."""

    use_sliding_window: bool | None = False
    max_window_layers: Index = 28

    def is_sliding(self, layer_idx: int) -> bool:
        if self.layer_types is not None:
            return super().is_sliding(layer_idx)
        return layer_idx >= self.max_window_layers

    def window(self, layer_idx: int) -> int | None:
        return super().window(layer_idx) if self.use_sliding_window else None


@dataclass(kw_only=True)
class LocalRopeConfig(WindowConfig):
    """The windowed layers have a rotary embedding of their own: no scaling for long contexts.

    transformers 5 writes both into `rope_parameters`, under the layers' kinds. Older checkpoints
    have `rope_theta` and `rope_scaling` for the others, and may have `rope_local_base_freq`.
    """

    default_local_rope_theta: ClassVar[float | None] = None

    local_rope_parameters: RopeParameters

    def rope(self, layer_idx: int) -> RopeParameters:
        return self.local_rope_parameters if self.is_sliding(layer_idx) else self.rope_parameters

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        kinds = {"sliding_attention", "full_attention"}
        rope = config.get("rope_parameters") or {}
        if not isinstance(rope, dict) or not rope.keys() <= kinds:
            raise ModelLoadError(
                f"config.json: rope_parameters must hold {' and '.join(sorted(kinds))}, "
                f"got {str(rope)[:200]}."
            )
        derived, sources = super()._derive(config | {"rope_parameters": rope.get("full_attention")})
        full = derived["rope_parameters"]
        local = RopeParameters.from_config(
            {"rope_parameters": rope.get("sliding_attention")},
            max_position_embeddings=full.max_position_embeddings,
            rope_theta=config.get("rope_local_base_freq")
            or cls.default_local_rope_theta
            or full.rope_theta,
        )
        return derived | {"local_rope_parameters": local}, sources | {"rope_local_base_freq"}


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of the text part of a model that also sees; the rest is about images.

    Raises:
        ModelLoadError: there is none.
    """
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise ModelLoadError(f"config.json: text_config must be an object, got {text!r:.80}.")
    return text | {"tie_word_embeddings": config.get("tie_word_embeddings", True)}
