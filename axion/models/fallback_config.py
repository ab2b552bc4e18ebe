"""config.json, as transformers' class for it reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axion.errors import ModelLoadError
from axion.models.fallback_calls import UnsupportedError

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedConfig

_MAX_LAYERS = 2**10
_UNLIMITED = 2**24
# Of config.json: how transformers is to compute, which may name code to fetch.
_NOT_THE_MODELS = frozenset(
    {
        *("quantization_config", "compression_config"),  # that is for `axion.quantization`
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        *("experts_implementation", "_experts_implementation"),
        *("_experts_implementation_internal", "auto_map", "fusion_config", "name_or_path"),
        *("_name_or_path", "transformers_weights", "distributed_config"),
        *("output_attentions", "output_hidden_states", "output_router_logits"),
    }
)


def read_config(cls: type[PreTrainedConfig], config: dict[str, Any]) -> PreTrainedConfig:
    """config.json, read by transformers' class for it.

    Raises:
        ModelLoadError: config.json is not what the class takes.
        UnsupportedError: it describes several decoders in one.
    """
    try:
        known = cls.from_dict(_the_models_own(config))
        num_layers = getattr(known.get_text_config(), "num_hidden_layers", None)
    except Exception as error:  # of any of some two hundred classes
        reason = " ".join(str(error).split())[:300]
        raise ModelLoadError(f"config.json does not suit {cls.__name__}: {reason}.") from None
    if num_layers is None:
        raise UnsupportedError("its layers are not one stack over the tokens, but several")
    if not 0 < num_layers <= _MAX_LAYERS:
        raise ModelLoadError(
            f"config.json: {num_layers} layers, expected at least 1 and at most {_MAX_LAYERS}."
        )
    return known


def _the_models_own(value: Any) -> Any:
    """config.json without what says how transformers is to compute: it may name code to fetch."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:  # JSON has no infinity
            return float(value["__float__"])
        return {k: _the_models_own(v) for k, v in value.items() if k not in _NOT_THE_MODELS}
    if isinstance(value, list):
        return [_the_models_own(entry) for entry in value]
    return value


def max_length(config: PreTrainedConfig) -> int:
    """Longest sequence that a model is meant for, in tokens.

    Ropes that depend on the length are served as far as they do not.
    """
    config = config.get_text_config()
    length: int = getattr(config, "max_position_embeddings", None) or _UNLIMITED
    for rope in _ropes(config):
        original = rope.get("original_max_position_embeddings") or length
        if rope.get("rope_type") == "longrope":
            length = min(length, original)
        elif rope.get("rope_type") == "yarn":
            length = max(length, int(original * (rope.get("factor") or 1)))
    return length


def _ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """`rope_parameters`, of which there may be one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [value for value in rope.values() if isinstance(value, dict)]
    return kinds or [rope]
