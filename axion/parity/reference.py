"""What transformers answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class Generated(NamedTuple):
    """
    Attributes:
        logits: `[num_tokens, vocab_size]`.
    """

    logits: Tensor
    token_ids: list[int]


@torch.inference_mode()
def generate(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> Generated:
    """What transformers generates, greedily, for this prompt alone."""
    forget(model)
    cache, logits, token_ids = DynamicCache(config=model.config), [], []
    input_ids = prompt
    for _ in range(num_tokens):
        out = model(torch.tensor([input_ids]), past_key_values=cache, logits_to_keep=1)
        logits.append(out.logits[0, -1])
        input_ids = [int(logits[-1].argmax())]
        token_ids += input_ids
    return Generated(torch.stack(logits), token_ids)


def forget(model: PreTrainedModel) -> None:
    """A dynamic rope keeps the longest length that it has seen; a new one has seen none."""
    decoder = model.get_decoder()
    if getattr(decoder, "rotary_emb", None) is not None:
        decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
