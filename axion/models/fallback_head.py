"""A model's own way from hidden states to logits: itself, with nothing for a decoder."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


def without_decoder(model: nn.Module, path: str) -> nn.Module:
    """The model, which shares all that it has, with hidden states for its input.

    Args:
        path: of the decoder in it.
    """
    head = module = copy.copy(model)
    *parents, last = path.split(".")
    for name in (*parents, None):
        module._modules = dict(module._modules)
        if name is not None:
            module._modules[name] = copy.copy(module._modules[name])
            module = module._modules[name]
    decoder = module._modules[last]
    assert decoder is not None
    module._modules[last] = _Given(decoder)
    return head


class _HiddenStates(tuple[Tensor]):
    """A decoder's output: the hidden states, and None for whatever else is asked of it."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


class _Given(nn.Module):
    """In the decoder's place: hidden states in, and out. What else is read is the decoder's."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self._decoder = (decoder,)  # in a tuple, for it is not a part of this module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder[0], name)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *_: Any,
        inputs_embeds: Tensor | None = None,
        **__: Any,
    ) -> _HiddenStates:
        hidden_states = input_ids if inputs_embeds is None else inputs_embeds
        assert hidden_states is not None
        return _HiddenStates((hidden_states,))
