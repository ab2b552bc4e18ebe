"""Activation functions by the names that `hidden_act` has in Hugging Face's config.json."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.errors import ModelLoadError
from axion.layers import kernels

Activation = Callable[[Tensor], Tensor]

_gelu_tanh = partial(F.gelu, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": _relu2,
    "silu": F.silu,
    "swish": F.silu,
}


# Those that are computed in one pass with the product that follows.
_FUSED = {F.silu: "silu", _gelu_tanh: "gelu_tanh"}
# Those that have a kernel without a product, too.
_UNGATED = {
    **_FUSED,
    F.gelu: "gelu",
    F.relu: "relu",
    _relu2: "relu2",
    torch.sigmoid: "sigmoid",
}


def apply(activation: Activation, x: Tensor) -> Tensor:
    """`activation(x)`, `[..., size]` to the same."""
    if activation in _UNGATED and (kernel := kernels.of("ungated", x)):
        return kernel.ungated(_UNGATED[activation], x)  # type: ignore[no-any-return]
    return activation(x)


def apply_gate(activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """`activation(gate) * up`, all `[..., size]`."""
    if activation in _FUSED and (kernel := kernels.of("activation", gate)):
        return kernel.gated(_FUSED[activation], gate, up)
    return activation(gate) * up


def clamp_gate(gate: Tensor, up: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """The gate, clamped from above, and what it multiplies, on both sides."""
    return gate.clamp(max=limit), up.clamp(-limit, limit)


def apply_sigmoid_gate(gate: Tensor, up: Tensor, *, alpha: float, limit: float) -> Tensor:
    """`(up + 1) * gate * sigmoid(alpha * gate)`, both clamped (gpt-oss, arXiv:2508.10925)."""
    gate, up = clamp_gate(gate, up, limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


def get_activation(name: str) -> Activation:
    """The function called `name`.

    Raises:
        ModelLoadError: there is none; the message lists what there is.
    """
    if name not in ACTIVATIONS:
        raise ModelLoadError(
            f"The model's activation function hidden_act={name!r} is not supported. "
            f"Supported: {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]
