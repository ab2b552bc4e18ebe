"""Each format of GGUF files against gguf's own, over random bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from axion.hub.gguf import TENSOR_TYPES, TensorType
from axion.quantization.gguf_blocks import dequantize


@pytest.mark.parametrize(
    ("number", "kind"), TENSOR_TYPES.items(), ids=lambda value: getattr(value, "name", "")
)
def test_it_is_gguf_s_to_the_last_bit(number: int, kind: TensorType):
    quantization = gguf.GGMLQuantizationType(number)
    assert (kind.block_size, kind.num_bytes) == gguf.GGML_QUANT_SIZES[quantization]
    assert kind.name == quantization.name
    random = np.random.default_rng(number)
    rows = random.integers(0, 256, size=(3, 40, 4 * kind.num_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(rows, quantization)
    found = dequantize(torch.from_numpy(rows), kind)
    assert found.dtype == torch.float32
    assert found.shape == (3, 40, 4 * kind.block_size)
    np.testing.assert_array_equal(found.numpy(), expected)  # NaN is NaN
