"""GPT-NeoX-Japanese (ABEJA, 2022): attention before the MLP, and one bias in all, behind the last
layer's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from axion.layers.linear import Linear
from axion.models.gpt_neox import GPTNeoXAttention, GPTNeoXConfig, GPTNeoXForCausalLM
from axion.models.hybrid import whole_number


@dataclass(kw_only=True)
class GPTNeoXJapaneseConfig(GPTNeoXConfig):
    default_partial_rotary_factor = 1.0

    attention_bias: bool = False
    mlp_bias: bool = False
    use_parallel_residual: bool = False
    tie_word_embeddings: bool = True

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        multiple = whole_number(config, "intermediate_multiple_size", 4)
        derived["intermediate_size"] = multiple * whole_number(config, "hidden_size", 0)
        return derived, sources | {"intermediate_multiple_size"}


class GPTNeoXJapaneseAttention(GPTNeoXAttention):
    def __init__(self, config: GPTNeoXJapaneseConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        is_last = layer_idx == config.num_hidden_layers - 1
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=is_last)


class GPTNeoXJapaneseForCausalLM(GPTNeoXForCausalLM):
    architectures = ("GPTNeoXJapaneseForCausalLM",)
    renamed_tensors = (
        (r"^gpt_neox_japanese\.", ""),
        (r"\.attention\.dense_bias$", ".self_attn.o_proj.bias"),
        *GPTNeoXForCausalLM.renamed_tensors,
    )
    config_cls = GPTNeoXJapaneseConfig
    attention_cls = GPTNeoXJapaneseAttention
