"""What a class of transformers calls for attention and experts, in place of transformers' own.

It calls attention through an interface, where functions are registered by name. Ours hands what it
is given to the `Attend` of the pass: one that only finds the calls, one that needs no cache, or
attention over the paged KV cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from axion.layers.attention import paged_attention
from axion.layers.context import ForwardContext, KVCacheSpec
from axion.layers.moe import Groups, pass_experts

# What the functions here are called in transformers.
OURS, PROBING = "axion", "axion_probe"

# Of a call of attention: what is about training, or said by the mask.
_HARMLESS = frozenset(
    """
    dropout position_ids output_attentions output_hidden_states use_cache sliding_window
    deterministic cache_position is_causal return_dict position_embeddings
    output_router_logits training past_key_values logits_to_keep
    """.split()  # noqa: SIM905
)


class UnsupportedError(Exception):
    """Why a class of transformers cannot be served."""


class Attend(Protocol):
    """One pass of the model, as its calls of attention see it."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        """Queries, keys and values `[num_tokens, num_heads, head_dim]` to
        `[num_tokens, num_heads, v_head_dim]`."""
        ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    attend: Attend | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each layer: `[1, num_heads, num_tokens, head_dim]` each."""
    if attend is None:
        raise UnsupportedError("it does not hand the arguments of a step down to its attention")
    for name, given in kwargs.items():
        if name not in _HARMLESS and given is not None:
            raise UnsupportedError(f"its attention takes {name}, which is not supported")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise UnsupportedError("its attention is not over the tokens of the step")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = attend(q, k, v, scale=scale, softcap=softcap, sinks=s_aux, mask=attention_mask)
    return out[None], None


@dataclass
class Probe:
    """Finds the calls of attention, and computes nothing."""

    specs: list[KVCacheSpec] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, **_: Any) -> Tensor:
        if mask is None:
            raise UnsupportedError("its attention is not causal")
        if not hasattr(mask, "is_causal"):
            raise UnsupportedError("it makes attention masks of its own")
        if not mask.is_causal:
            raise UnsupportedError("a token attends to others than those before it, or not to all")
        if q.shape[1] % k.shape[1] or k.shape[1] != v.shape[1]:
            raise UnsupportedError("its attention has heads that do not fit each other")
        self.specs.append(KVCacheSpec(k.shape[1], k.shape[2], v.shape[2], window=mask.window))
        return q.new_zeros(*q.shape[:2], v.shape[-1])


def _probe_mask(
    mask_function: Callable[..., Tensor],
    q_length: int,
    kv_length: int,
    local_size: int | None = None,
    **_: Any,
) -> Tensor:
    """A mask that only says what it lets a token attend to, for `Probe`."""
    mask = torch.empty(1, 1, q_length, kv_length)
    mask.is_causal = _is_causal(mask_function, local_size)  # type: ignore[attr-defined]
    mask.window = local_size  # type: ignore[attr-defined]
    return mask


def _is_causal(allows: Callable[..., Tensor], local_size: int | None) -> bool:
    """Whether a mask function of transformers lets a token attend to itself and those before it,
    the `local_size` last of them or all."""
    far = 2 * (local_size or 2048)
    with torch.device("cpu"):
        q = torch.tensor([0, 1, 2, 5, far // 2 - 1, far // 2, far // 2 + 1, far + 3])[:, None]
        back = torch.tensor([-3, -1, 0, 1, 2, 5, far // 2 - 1, far // 2, far // 2 + 1, far])
        kv = (q - back).clamp(min=0)
        expected = (kv <= q) & (kv > q - (local_size or far * 2))
        try:
            return torch.equal(allows(torch.tensor(0), torch.tensor(0), q, kv), expected)
        except (RuntimeError, IndexError):  # it wants to know of padding
            return False


class Local:
    """Attention of each token to itself, but with all that queries and keys say."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        turned = (q.float().sum(-1, keepdim=True)).tanh() + 2
        repeats = q.shape[1] // v.shape[1]
        v = v.repeat_interleave(repeats, 1) + k.mean(-1, keepdim=True).repeat_interleave(repeats, 1)
        return (v * turned.to(v.dtype)).to(q.dtype)


class Paged:
    """Attention over the paged KV cache."""

    def __init__(self, specs: list[KVCacheSpec], context: ForwardContext) -> None:
        self._specs = enumerate(specs)
        self._context = context

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        index, spec = next(self._specs, (0, None))
        assert spec is not None, "the model calls attention more often than when it was built"
        cache = self._context.kv_caches[index]
        out = paged_attention(
            q.to(cache.dtype),
            k.to(cache.dtype),
            v.to(cache.dtype),
            cache,
            self._context,
            scale=scale,
            window=spec.window,
            softcap=softcap,
            sinks=sinks,
        )
        return out.to(q.dtype)

    def finish(self) -> None:
        assert next(self._specs, None) is None, "the model calls attention less often than it did"


def _experts(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What transformers calls for the experts of a layer."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if isinstance(getattr(module, "down_proj", None), Tensor) or not module.has_gate:
        theirs = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
        return theirs(module, hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]

    def network(x: Tensor, groups: Groups) -> Tensor:
        out: Tensor = module.down_proj(module._apply_gate(module.gate_up_proj(x, groups)), groups)
        return out

    return pass_experts(hidden_states, top_k_weights, top_k_index, module.num_experts, network)


def _no_experts(module: nn.Module, hidden_states: Tensor, *_: Tensor) -> Tensor:
    """Experts, for `Probe`: which tokens go where is not known on the meta device."""
    return torch.empty_like(hidden_states)


@functools.cache
def register() -> None:
    """Tell transformers of the functions above."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.utils import logging

    AttentionInterface.register(OURS, _attention)
    AttentionInterface.register(PROBING, _attention)
    # None is registered for ours: transformers then makes no masks at all.
    AttentionMaskInterface.register(PROBING, _probe_mask)
    ALL_EXPERTS_FUNCTIONS.register(OURS, _experts)
    ALL_EXPERTS_FUNCTIONS.register(PROBING, _no_experts)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
