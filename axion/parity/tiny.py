"""Small models of any architecture, with every parameter random."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from axion.errors import ModelLoadError, ModelNotFoundError
from axion.parity.sizes import CHANGES, LIMITS, ORIGINAL_LENGTH, TINY

MAX_LAYERS = 6

# Within the original context, growing out of it while generating, and beyond it from the start.
_PROMPT_LENGTHS = (7, ORIGINAL_LENGTH - 14, ORIGINAL_LENGTH + 26)


def base_config(name: str) -> PreTrainedConfig:
    """The default configuration of an architecture or a model type of transformers.

    Raises:
        ModelNotFoundError: transformers has neither.
    """
    by_type = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES | MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    architecture = by_type.get(name, name)
    config_class = getattr(getattr(transformers, architecture, None), "config_class", None)
    if config_class is None:
        raise ModelNotFoundError(
            f"transformers {transformers.__version__} has no architecture and no model type "
            f"{name[:80]!r}. Name one such as Qwen3ForCausalLM or qwen3, or a model's folder or id."
        )
    config = config_class()
    config.architectures = [architecture]
    return config


def small_config(name: str) -> PreTrainedConfig:
    """A small configuration of an architecture or a model type of transformers.

    Raises:
        ModelNotFoundError: transformers has neither.
        ModelLoadError: as `shrink`.
    """
    config = base_config(name)
    return shrink(config, **CHANGES.get(config.architectures[0], {}))


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration in a folder's config.json; nothing of the folder is executed.

    Raises:
        ModelLoadError: transformers cannot read it.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (LookupError, OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise ModelLoadError(f"transformers cannot read config.json: {error}") from None


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers for a configuration.

    Raises:
        ModelNotFoundError: there is none.
    """
    for name in config.architectures or ():
        if isinstance(found := getattr(transformers, name, None), type):
            return found
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    raise ModelNotFoundError(
        f"transformers {transformers.__version__} has no class for {config.architectures}."
    )


def shrink(config: PreTrainedConfig, **changes: Any) -> PreTrainedConfig:
    """The same architecture, small: a few layers, one of each kind, small sizes and lengths.

    Args:
        changes: fields, over the small ones; those of a part in a dict of its own.

    Raises:
        ModelLoadError: the sizes of this one are bound to each other in ways that are not known.
    """
    try:
        return type(config)(**_merged(_shrunk(config), changes))
    except (NotImplementedError, TypeError, ValueError, StrictDataclassError) as error:
        raise ModelLoadError(
            f"No small configuration can be made of {config.model_type}'s: {error}"
        ) from None


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {name: (fields.get(name), value) for name, value in changes.items()}
    return fields | {
        name: _merged(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
        for name, (old, new) in both.items()
    }


def _shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    fields = config.to_dict()
    for name in config.sub_configs:
        if isinstance(fields.get(name), dict):
            fields[name] = _shrunk(getattr(config, name))
    # A configuration may call its fields by names of its own.
    own = {common: config.attribute_map.get(common, common) for common in TINY}
    if getattr(config, own["num_hidden_layers"], None) is None:
        return _with_token_ids(fields)
    heads, kv_heads = (
        fields.get(own[name]) for name in ("num_attention_heads", "num_key_value_heads")
    )
    head_dim, hidden_size = fields.get("head_dim"), fields.get(own["hidden_size"])
    fields |= {own[name]: value for name, value in TINY.items() if value and own[name] in fields}
    if kv_heads is None or kv_heads == heads:
        fields |= {own["num_key_value_heads"]: kv_heads and 4}
    elif kv_heads == 1:
        fields |= {own["num_key_value_heads"]: 1}
    if kv_heads != heads and fields.get("index_n_heads") == kv_heads:  # each for one of those
        fields["index_n_heads"] = fields[own["num_key_value_heads"]]
    if head_dim is not None:
        fields["head_dim"] = 16 if not heads or head_dim * heads == hidden_size else 24
        if head_dim == fields.get("qk_rope_head_dim"):  # of latent attention it is that
            fields["head_dim"] = LIMITS["qk_rope_head_dim"]
    for name, limit in LIMITS.items():
        if isinstance(fields.get(name), int) and fields[name] > limit:
            fields[name] = limit
    if "mamba_d_head" in fields:  # times the number of heads it is the size of the whole
        fields["mamba_d_head"] = LIMITS["mamba_d_head"]
    for name in (
        "hybrid_layer_ids",
        "attention_hidden_size",
        "attention_head_dim",
        "mamba_headdim",
        "number_of_conv_states",
    ):
        fields.pop(name, None)  # they follow from others
    if "attn_layer_indices" in fields:
        fields["attn_layer_indices"] = [1]
    if fields.get("ple_layer_ids"):
        fields["ple_layer_ids"] = [1]
    if isinstance(rates := fields.get("compress_rates"), dict):
        fields["compress_rates"] = {kind: min(rate, 8) for kind, rate in rates.items()}
    num_layers = config.num_hidden_layers
    layers = _layers(config.to_dict(), num_layers)
    fields |= {
        name: [value[i] for i in layers]
        for name, value in fields.items()
        if isinstance(value, list) and len(value) == num_layers
    }
    fields[own["num_hidden_layers"]] = len(layers)
    if (of_layers := fields.get("per_layer_config")) is not None:
        by_layer = {int(layer): own for layer, own in of_layers.items()}
        fields["per_layer_config"] = {
            str(new): _shrunk_heads(by_layer[old])
            for new, old in enumerate(layers)
            if old in by_layer
        }
    if fields.get("num_kv_shared_layers"):
        fields["num_kv_shared_layers"] = len(layers) // 2
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(fields.get(name), dict):
            fields[name] = _shrunk_rope(fields[name], fields)
    return _with_token_ids(fields)


def _layers(fields: dict[str, Any], num_layers: int) -> list[int]:
    """One layer of each kind, as the lists with an entry for each layer tell; at least two."""
    lists = [v for v in fields.values() if isinstance(v, list) and len(v) == num_layers]
    first: dict[str, int] = {}
    for i in range(num_layers):
        first.setdefault(repr([values[i] for values in lists]), i)
    kinds = sorted(first.values())[:MAX_LAYERS]
    if num_shared := fields.get("num_kv_shared_layers"):
        kinds = sorted({i % (num_layers - num_shared) for i in kinds})
        return [*kinds, *(num_layers - 1 - kinds[-1] + i for i in kinds)]
    return kinds if len(kinds) > 1 else list(range(min(2, num_layers)))


def _shrunk_heads(fields: dict[str, int]) -> dict[str, int]:
    """What a layer has instead of its model's."""
    sizes = {"head_dim": 32, "num_key_value_heads": 1}
    return fields | {name: sizes[name] for name in sizes.keys() & fields.keys()}


def _shrunk_rope(rope: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    if any(isinstance(value, dict) for value in rope.values()):  # one for each kind of layer
        return {
            kind: _shrunk_rope(value, fields) if isinstance(value, dict) else value
            for kind, value in rope.items()
        }
    head_dim = fields.get("head_dim") or TINY["hidden_size"] // TINY["num_attention_heads"]
    num_pairs = int(head_dim * rope.get("partial_rotary_factor", 1.0)) // 2
    shrunk = {
        name: value[:num_pairs] if isinstance(value, list) else value
        for name, value in rope.items()
    }
    if "original_max_position_embeddings" in rope:
        shrunk["original_max_position_embeddings"] = ORIGINAL_LENGTH
    return shrunk


def _with_token_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """Ids that the small vocabulary has. What stands for images and the like is in no prompt: it
    is no text."""
    used = {token_id for prompt in random_prompts() for token_id in prompt}
    unused = iter(sorted(set(range(TINY["vocab_size"])) - used, reverse=True))
    for name, value in fields.items():
        if name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if isinstance(value, list):
                fields[name] = [min(token_id, TINY["vocab_size"] - 1) for token_id in value]
            elif value is not None:
                fields[name] = min(value, TINY["vocab_size"] - 1)
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            fields[name] = next(unused)
    return fields


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration in float32, the same every time, with every parameter random.

    transformers initialises norms to ones and biases to zeros, which would hide an ignored one. A
    parameter that several configurations have is the same in all of them.

    Raises:
        ModelLoadError: transformers cannot build it.
    """
    config._attn_implementation = "eager"
    try:
        model = model_class(config)(config).eval()
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelLoadError(
            f"transformers builds no model of this {config.model_type} configuration: {error}"
        ) from error
    with torch.no_grad():
        # Those that are the same everywhere; others are computed of the configuration.
        stored_buffers = {
            name
            for name, buffer in model.named_buffers()
            if name in model.state_dict() and buffer.unique().numel() == 1
        }
        for name, parameter in (
            *model.named_parameters(),
            *((name, model.get_buffer(name)) for name in sorted(stored_buffers)),
        ):
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if name.endswith(".tid2eid"):  # of each token different experts
                scores = torch.rand(*parameter.shape[:1], 6, generator=generator)
                parameter.copy_(scores.topk(parameter.shape[1]).indices)
                continue
            if not parameter.is_floating_point():
                continue
            parameter.normal_(std=0.2, generator=generator)
            if name.endswith(("norm.weight", ".layer_scalar")):
                parameter += 1.0
    return model


def random_prompts() -> list[list[int]]:
    """Token ids, the same every time."""
    return [
        [(31 * i * i + 7 * i + length) % TINY["vocab_size"] for i in range(length)]
        for length in _PROMPT_LENGTHS
    ]
