"""The slopes of linear biases are those of transformers' models."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from axion.layers.alibi import alibi_slopes


@pytest.mark.parametrize("max_bias", [8, 16])
@pytest.mark.parametrize("num_heads", [1, 6, 8, 12, 112])
def test_slopes_are_the_biases_of_neighbours(num_heads: int, max_bias: int) -> None:
    biases = build_mpt_alibi_tensor(num_heads, 2, alibi_bias_max=max_bias)
    torch.testing.assert_close(-alibi_slopes(num_heads, max_bias), biases[:, 0, 0])
