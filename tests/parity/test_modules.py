"""The first module that differs is named, and no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from axion.engine import loader
from axion.layers import onednn
from axion.layers.context import ForwardContext
from axion.layers.rotary import apply_rotary_interleaved
from axion.models.base import Attention, CausalLM, DecoderLayer, HeadNormAttention
from axion.models.deepseek_v3 import DeepseekV3Config, DeepseekV3ForCausalLM
from axion.models.gemma2 import Gemma2DecoderLayer, Gemma2ForCausalLM
from axion.models.granite import GraniteForCausalLM
from axion.models.mla import MLA
from axion.models.olmo2 import Olmo2ForCausalLM
from axion.models.qwen3 import Qwen3Config, Qwen3ForCausalLM
from axion.models.qwen3_moe import Qwen3MoeForCausalLM
from axion.parity.messages import Fault
from axion.parity.modules import Comparison
from axion.parity.tiny import random_prompts
from tests.parity.checkpoints import build_tiny, save_tiny

Broken = type[CausalLM]


class NoKeyNorm(HeadNormAttention):
    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary_emb(context, q.dtype)
        return self.apply_rotary(q, cos, sin, self.q_norm), self.apply_rotary(k, cos, sin)


class KeyNormOfTheSecondLayer(NoKeyNorm):
    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        first = HeadNormAttention if self.layer_idx == 0 else NoKeyNorm
        return first.rotate_qk(self, q, k, context)


class InterleavedRope(HeadNormAttention):
    apply_rotary = staticmethod(apply_rotary_interleaved)


class QueriesThatGrow(HeadNormAttention):
    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        q, k = super().rotate_qk(q, k, context)
        return q * 1.5, k


class WrongEps(HeadNormAttention):
    def __init__(self, config: Qwen3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_norm.eps = 0.1


class WrongScale(MLA):
    def __init__(self, config: DeepseekV3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.scale *= 1.5


class NoNormBehindTheMLP(Gemma2DecoderLayer):
    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden_states), context)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        return hidden_states + self.mlp(self.pre_feedforward_layernorm(hidden_states))


class NoMLP(DecoderLayer):
    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden_states), context)
        return self.post_attention_layernorm(hidden_states + attended)


class BeforeInsteadOfBehind(DecoderLayer):
    def __init__(
        self, config: object, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.post_feedforward_layernorm = self.input_layernorm
        del self.input_layernorm

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        out = self.self_attn(self.post_attention_layernorm(hidden_states), context)
        hidden_states = hidden_states + out
        return hidden_states + self.mlp(self.post_feedforward_layernorm(hidden_states))


def qwen3(attention: type[Attention]) -> Broken:
    return type("Broken", (Qwen3ForCausalLM,), {"attention_cls": attention})


def with_config(base: Broken, **changes: object) -> Broken:
    def __init__(self: CausalLM, config: object) -> None:  # noqa: N807
        base.__init__(self, replace(config, **changes))

    return type("Broken", (base,), {"__init__": __init__})


L0 = "model.layers.0"
FAULTS: dict[str, tuple[str, Callable[[], Broken], str, str]] = {
    "norm skipped": ("qwen3", lambda: qwen3(NoKeyNorm), f"{L0}.self_attn.k_norm", "uses none"),
    "norm skipped in one layer": (
        "qwen3",
        lambda: qwen3(KeyNormOfTheSecondLayer),
        "model.layers.1.self_attn.k_norm",
        "uses none",
    ),
    "norm's eps": ("qwen3", lambda: qwen3(WrongEps), f"{L0}.self_attn.q_norm", "its output"),
    "rope": ("qwen3", lambda: qwen3(InterleavedRope), f"{L0}.self_attn", "its keys differ"),
    "queries": ("qwen3", lambda: qwen3(QueriesThatGrow), f"{L0}.self_attn", "are equal: queries"),
    "window": (
        "qwen3-window",
        lambda: with_config(Qwen3ForCausalLM, sliding_window=17),
        f"{L0}.self_attn",
        "mask or window",
    ),
    "residual multiplier": (
        "granite-residual-multiplier",
        lambda: with_config(GraniteForCausalLM, residual_multiplier=1.0),
        L0,
        "after self_attn, before post_attention_layernorm",
    ),
    "embedding multiplier": (
        "granite-embedding-multiplier",
        lambda: with_config(GraniteForCausalLM, embedding_multiplier=1.0),
        "model",
        "after embed_tokens, before layers.0",
    ),
    "logits scaling": (
        "granite-logits-scaling",
        lambda: with_config(GraniteForCausalLM, logits_scaling=1.0),
        "compute_logits",
        "after lm_head",
    ),
    "activation": (
        "llama-gelu",
        lambda: with_config(CausalLM, hidden_act="silu"),
        f"{L0}.mlp",
        "after up_proj, before down_proj",
    ),
    "norm behind the MLP": (
        "gemma2",
        lambda: type("Broken", (Gemma2ForCausalLM,), {"layer_cls": NoNormBehindTheMLP}),
        f"{L0}.post_feedforward_layernorm",
        "uses none",
    ),
    "soft cap behind an embedding in another form": (
        "gemma2-caps",
        lambda: with_config(Gemma2ForCausalLM, attn_logit_softcapping=None),
        f"{L0}.self_attn",
        "scale, mask",
    ),
    "norms before instead of behind": (
        "olmo2",
        lambda: type("Broken", (Olmo2ForCausalLM,), {"layer_cls": BeforeInsteadOfBehind}),
        L0,
        "before self_attn",
    ),
    "experts' weights": (
        "qwen3-moe-norm",
        lambda: with_config(Qwen3MoeForCausalLM, norm_topk_prob=False),
        "model.layers.1.mlp",
        "before experts",
    ),
    "scale, where a projection is computed by its weights": (
        "deepseek-v3",
        lambda: type("Broken", (DeepseekV3ForCausalLM,), {"attention_cls": WrongScale}),
        f"{L0}.self_attn",
        "before o_proj",
    ),
}


def first_fault(case: str, folder: Path) -> Fault | None:
    save_tiny(case, folder)
    model = loader.load_model(folder, device=torch.device("cpu"), dtype="float32")
    comparison = Comparison(build_tiny(case), model, 1e-4)
    faults = [comparison.run(prompt, i) for i, prompt in enumerate(random_prompts())]
    return next((fault for fault in faults if fault is not None), None)


@pytest.mark.parametrize("name", FAULTS)
def test_the_first_module_that_differs_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, broken, module, reason = FAULTS[name]
    monkeypatch.setattr(loader, "load_model_class", lambda *_, **__: broken())
    fault = first_fault(case, tmp_path)
    assert fault is not None
    assert fault.module == module, fault
    assert reason in fault.reason


def test_a_module_with_packed_weights_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 1)
    broken = type("Broken", (Qwen3ForCausalLM,), {"layer_cls": NoMLP})
    monkeypatch.setattr(loader, "load_model_class", lambda *_, **__: broken)
    fault = first_fault("qwen3", tmp_path)
    assert fault is not None
    assert fault.module == L0
    assert "post_attention_layernorm" in fault.reason


# Whose modules have names of their own, hold experts, or compute from a latent.
@pytest.mark.parametrize(
    "case", ["gpt2", "falcon", "gemma3-seeing", "gpt-oss", "deepseek-v3", "granite-moe-shared"]
)
def test_modules_correspond_whatever_they_are_called(case: str, tmp_path: Path) -> None:
    save_tiny(case, tmp_path)
    model = loader.load_model(tmp_path, device=torch.device("cpu"), dtype="float32")
    comparison = Comparison(build_tiny(case), model, 1e-4)
    assert comparison.run(random_prompts()[0], 0) is None
    compared = {name.rpartition(".")[2] for name in comparison.modules}
    assert compared >= {"0", "1"}  # layers
    assert len(comparison.modules) > 15
