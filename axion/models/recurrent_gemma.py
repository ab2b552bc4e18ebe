"""RecurrentGemma (arXiv:2404.07839): two layers of three are Griffin's recurrent block, the others
attend to a window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.activation import get_activation
from axion.layers.context import NO_KV_CACHE, ForwardContext, KVCacheSpec, StateTensor
from axion.layers.conv import CausalConv1d
from axion.layers.linear import Linear
from axion.layers.rotary import Positive
from axion.layers.selective_scan import linear_recurrence
from axion.layers.state import scan
from axion.models.base import MLP, Attention, Decoder
from axion.models.config import Size
from axion.models.gemma import GemmaConfig, GemmaForCausalLM
from axion.models.hybrid import HybridConfig, HybridForCausalLM, num_layers


@dataclass(kw_only=True)
class RecurrentGemmaConfig(HybridConfig, GemmaConfig):
    """
    Attributes:
        lru_width: channels of a recurrent block; the hidden size by default.
        sliding_window: `attention_window_size` in config.json.
    """

    renamed_fields = (
        ("attention_window_size", "sliding_window"),
        ("logits_soft_cap", "final_logit_softcapping"),
    )

    default_partial_rotary_factor = 0.5

    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_activation: str | None = "gelu_pytorch_tanh"
    sliding_window: Size = 2048
    lru_width: Size | None = None
    conv1d_width: Size = 4
    final_logit_softcapping: Positive = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lru_width = self.lru_width or self.hidden_size
        if self.lru_width % self.num_attention_heads:
            raise ValueError(
                f"lru_width ({self.lru_width}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )

    @property
    def output_bias(self) -> bool:
        return True

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """`block_types` begins anew until each layer has one."""
        derived, sources = super()._derive(config)
        kinds = config.get("block_types", ["recurrent", "recurrent", "attention"])
        if not isinstance(kinds, list) or not kinds:
            raise ModelLoadError(
                f"config.json: block_types must be a list of recurrent and attention, got "
                f"{str(kinds)[:80]}."
            )
        count = num_layers(config)
        derived["layer_types"] = [kinds[i % len(kinds)] for i in range(count)]
        harmless = {"block_types", "w_init_variance_scale", "final_w_init_variance_scale"}
        return derived, sources | harmless

    def window(self, layer_idx: int) -> int | None:
        return self.sliding_window if self.layer_types[layer_idx] == "attention" else None


class RecurrentBlock(nn.Module):
    """A recurrence of each channel alone, behind a short convolution, whose rate each token chooses
    (Griffin's RG-LRU, arXiv:2402.19427)."""

    kv_cache_spec: ClassVar[KVCacheSpec] = NO_KV_CACHE

    def __init__(self, config: RecurrentGemmaConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        size = config.lru_width
        self.linear_y = Linear(config.hidden_size, size, bias=True)
        self.linear_x = Linear(config.hidden_size, size, bias=True)
        self.linear_out = Linear(size, config.hidden_size, bias=True)
        self.activation = get_activation(config.hidden_act)
        self.conv_1d = CausalConv1d(size, config.conv1d_width, bias=True)
        self.rg_lru = RGLRU(config)
        self.state_spec = {
            "conv": self.conv_1d.state,
            "recurrent": StateTensor((size,), torch.float32),
        }

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        state = context.states[self.layer_idx]
        gate = self.activation(self.linear_y(hidden_states))
        x = self.conv_1d(self.linear_x(hidden_states), state["conv"], context)
        x = scan(_recur, state["recurrent"], self.rg_lru(x, context.positions), context)
        return self.linear_out(x.to(gate.dtype) * gate)


class RGLRU(nn.Module):
    """What a channel keeps of its state, and what a token adds to that."""

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        head_size = config.lru_width // self.num_heads
        for name in ("input_gate", "recurrent_gate"):
            weight = torch.empty(self.num_heads, head_size, head_size)
            bias = torch.empty(self.num_heads, head_size)
            self.register_parameter(f"{name}_weight", nn.Parameter(weight, requires_grad=False))
            self.register_parameter(f"{name}_bias", nn.Parameter(bias, requires_grad=False))
        self.recurrent_param = nn.Parameter(torch.empty(config.lru_width), requires_grad=False)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`[num_tokens, lru_width]` to shares that are kept and inputs, float32, likewise.

        Args:
            positions: `[num_tokens]`.
        """
        is_first = (positions == 0)[:, None]
        kept = self._gate(x, self.recurrent_gate_weight, self.recurrent_gate_bias).float()
        kept = -8.0 * kept * F.softplus(self.recurrent_param.float())
        added = x * self._gate(x, self.input_gate_weight, self.input_gate_bias)
        # So that a state is as large as its inputs.
        added = added.float() * torch.where(is_first, 1.0, (1 - (2 * kept).exp()).sqrt())
        return kept.exp(), added

    def _gate(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Each head's channels alone, `[num_tokens, lru_width]` to the same."""
        x = x.unflatten(-1, (self.num_heads, -1))
        return (torch.einsum("thi,hij->thj", x, weight) + bias).sigmoid().flatten(1)


def _recur(state: Tensor, kept: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    states = linear_recurrence(state, kept, added)
    return states, states[:, -1]


class RecurrentGemmaMLP(MLP):
    def __init__(self, config: RecurrentGemmaConfig, layer_idx: int) -> None:
        half = config.intermediate_size // 2
        super().__init__(replace(config, intermediate_size=half, mlp_bias=True), layer_idx)


class RecurrentGemmaDecoder(Decoder):
    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        hidden_states = self.embed_tokens(input_ids)
        # Rounded to bfloat16 whatever the weights are.
        factor = torch.tensor(hidden_states.shape[-1] ** 0.5, dtype=torch.bfloat16)
        return hidden_states * factor.to(hidden_states.dtype)


class RecurrentGemmaForCausalLM(HybridForCausalLM, GemmaForCausalLM):
    architectures = ("RecurrentGemmaForCausalLM",)
    renamed_tensors = (
        *GemmaForCausalLM.renamed_tensors,
        (r"^model\.final_norm\.", "model.norm."),
        (r"\.temporal_block\.", ".self_attn."),
        (r"\.temporal_pre_norm\.", ".input_layernorm."),
        (r"\.mlp_block\.", ".mlp."),
        (r"\.channel_pre_norm\.", ".post_attention_layernorm."),
    )
    config_cls = RecurrentGemmaConfig
    mlp_cls = RecurrentGemmaMLP
    decoder_cls = RecurrentGemmaDecoder
    mixers = (("recurrent", RecurrentBlock), ("attention", Attention))
    config: RecurrentGemmaConfig

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        cap = self.config.final_logit_softcapping
        return cap * torch.tanh(super().compute_logits(hidden_states) / cap)
