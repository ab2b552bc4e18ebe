"""What transformers answers."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, MiniMaxForCausalLM, PreTrainedModel
from transformers.models.minimax.modeling_minimax import MiniMaxCache


class Generated(NamedTuple):
    """
    Attributes:
        logits: `[num_tokens, vocab_size]`.
    """

    logits: Tensor
    token_ids: list[int]


@torch.inference_mode()
def generate(
    model: PreTrainedModel, prompt: list[int], num_tokens: int, *, first_position: int = 0
) -> Generated:
    """What transformers generates, greedily, for this prompt alone.

    Args:
        first_position: from which the model counts.
    """
    forget(model)
    logits: list[Tensor] = []
    token_ids: list[int] = []
    parameters = inspect.signature(model.forward).parameters
    has_cache = cache_name(model) in parameters
    inputs: dict[str, Any] = {}
    if has_cache:
        inputs = {cache_name(model): new_cache(model), "use_cache": True}
    input_ids, position = prompt, 0
    for _ in range(num_tokens):
        if not has_cache:
            input_ids, position = prompt + token_ids, 0
        end = position + len(input_ids)
        if "position_ids" in parameters:  # not all count what is cached
            inputs["position_ids"] = torch.arange(position, end)[None] + first_position
        out = model(torch.tensor([input_ids]), logits_to_keep=1, **inputs)
        position = end
        logits.append(out.logits[0, -1])
        input_ids = [int(logits[-1].argmax())]
        token_ids += input_ids
    return Generated(torch.stack(logits), token_ids)


def new_cache(model: PreTrainedModel) -> Cache:
    """An empty cache of the kind that the model has."""
    if isinstance(model, MiniMaxForCausalLM):  # takes no other
        return MiniMaxCache()
    return DynamicCache(config=model.config)


def cache_name(model: PreTrainedModel) -> str:
    """What the model calls its cache."""
    has_states_only = "cache_params" in inspect.signature(model.forward).parameters
    return "cache_params" if has_states_only else "past_key_values"


def forget(model: PreTrainedModel) -> None:
    """A dynamic rope keeps the longest length that it has seen; a new one has seen none."""
    decoder = model.get_decoder()
    if (old := getattr(decoder, "rotary_emb", None)) is not None:
        decoder.rotary_emb = type(old)(decoder.config)
        decoder.rotary_emb.load_state_dict(old.state_dict())  # what is learned of it
