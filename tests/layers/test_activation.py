from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from axion.errors import ModelLoadError
from axion.layers.activation import ACTIVATIONS, get_activation


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_names_mean_what_they_mean_in_transformers(name: str) -> None:
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(get_activation(name)(x), ACT2FN[name](x), rtol=0, atol=1e-6)


def test_exact_gelu_is_not_the_tanh_approximation() -> None:
    x = torch.linspace(-3, 3, 11)
    assert (get_activation("gelu")(x) - get_activation("gelu_pytorch_tanh")(x)).abs().max() > 1e-4


def test_unknown_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(ModelLoadError, match=r"'snake'.*silu"):
        get_activation("snake")
