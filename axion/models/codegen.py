"""CodeGen (arXiv:2203.13474): a GPT-J whose queries, values and keys are fused in four parts."""

from __future__ import annotations

from torch import Tensor

from axion.layers.linear import Linear
from axion.models.gptj import GPTJAttention, GPTJConfig, GPTJForCausalLM

# Each computed by one of the processors that it was trained on.
_NUM_PARTS = 4


class CodeGenAttention(GPTJAttention):
    def __init__(self, config: GPTJConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.qkv_proj = Linear(config.hidden_size, self.qkv_proj.out_features)

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (_NUM_PARTS, 3, -1, self.head_dim))
        q, v, k = (x.flatten(1, 2) for x in qkv.unbind(2))
        return q, k, v


class CodeGenForCausalLM(GPTJForCausalLM):
    architectures = ("CodeGenForCausalLM",)
    ignored_tensors = (r".*\.self_attn\.(causal_mask|embed_positions)",)
    attention_cls = CodeGenAttention
