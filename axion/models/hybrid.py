"""The standard decoder with layers that keep a recurrent state instead of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.context import ForwardContext, StateSpec
from axion.layers.rotary import RotaryEmbedding
from axion.models.base import Attention, CausalLM
from axion.models.config import DecoderConfig


def whole_number(config: dict[str, Any], name: str, default: int) -> int:
    """A field that others are derived from. What is no size is refused where the field is read."""
    value = config.get(name)
    return value if type(value) is int and 0 <= value <= 2**24 else default


def num_layers(config: dict[str, Any]) -> int:
    """`num_hidden_layers`, likewise."""
    return min(whole_number(config, "num_hidden_layers", 0), 2**10)


@dataclass(kw_only=True)
class HybridConfig(DecoderConfig):
    """A decoder whose layers are of several kinds.

    Attributes:
        layer_types: the kind of each layer, by its name in `HybridForCausalLM.mixers`.
    """

    layer_types: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types must name {self.num_hidden_layers} layers, not "
                f"{len(self.layer_types)}"
            )


class UnrotatedAttention(Attention):
    """Queries and keys have no positions: the other layers know the order."""

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        del self.rotary_emb

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return q, k


class HybridForCausalLM(CausalLM):
    """What mixes tokens differs from layer to layer, and takes attention's place in each.

    Attributes:
        mixers: kinds of layers to what mixes tokens in them. It has a `kv_cache_spec`, and a
            `state_spec` if it keeps a state.
    """

    batch_dependence = "what a recurrent state is rounded to depends on how a prompt is cut"
    mixers: ClassVar[tuple[tuple[str, type[nn.Module]], ...]]
    config: HybridConfig

    def mixer(self, layer_idx: int) -> nn.Module:
        kind, mixers = self.config.layer_types[layer_idx], dict(self.mixers)
        if kind not in mixers:
            raise ModelLoadError(
                f"config.json: layer_types has {kind[:80]!r}, expected one of {', '.join(mixers)}."
            )
        return mixers[kind](self.config, layer_idx)

    def state_specs(self) -> list[StateSpec]:
        return [getattr(layer.self_attn, "state_spec", {}) for layer in self.model.layers]

    def max_length(self) -> int:
        lengths = [rope.max_length() for rope in self._ropes()]
        return min(lengths, default=self.config.max_position_embeddings)

    def rope_cache_key(self, num_prompt_tokens: int) -> int:
        return max((rope.cache_key(num_prompt_tokens) for rope in self._ropes()), default=0)

    def _ropes(self) -> list[RotaryEmbedding]:
        return [module for module in self.modules() if isinstance(module, RotaryEmbedding)]


class MixerLayer(nn.Module):
    """One mixer behind a norm and beside a residual connection, and no MLP after it."""

    def __init__(self, config: DecoderConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = config.norm()
        self.self_attn = mixer

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        normalized = self.norm(hidden_states.to(self.norm.weight.dtype))
        return hidden_states + self.self_attn(normalized, context)


class MixerForCausalLM(HybridForCausalLM):
    """A decoder of layers with a mixer only."""

    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"^backbone\.", "model."),
        (r"^model\.embeddings?\.", "model.embed_tokens."),
        (r"^model\.norm_f\.", "model.norm."),
        (r"\.mixer\.", ".self_attn."),
    )

    def layer(self, layer_idx: int) -> nn.Module:  # type: ignore[override]
        return MixerLayer(self.config, self.mixer(layer_idx))
