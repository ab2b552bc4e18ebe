"""Each format of GGUF files, laid out for the CPU's kernels."""

from __future__ import annotations

import pytest
import torch

from axion.layers.cpu_kernels.layouts import LAYOUTS
from axion.quantization.gguf import BLOCK_TYPES
from axion.quantization.gguf_blocks import dequantize
from axion.quantization.gguf_packed import PackedBlockKernel, num_bytes
from tests.quantization.test_gguf_blocks import COLUMNS, ROWS, random_weight


def test_there_is_a_layout_for_each_format():
    assert LAYOUTS.keys() == BLOCK_TYPES.keys()


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_it_is_the_weight_to_the_last_bit(name: str):
    kind = BLOCK_TYPES[name]
    weight = random_weight(kind)[:-5]  # of rows that do not fill their tile
    expected = dequantize(weight, kind)
    kernel = PackedBlockKernel(weight, kind)
    assert torch.equal(kernel.dequantize(torch.float32), expected)
    ids = torch.tensor([0, 31, 32, 63, 64, 127, 186, 5, 5])
    assert torch.equal(kernel.embed(ids, torch.float32), expected[ids])


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_it_takes_little_more_memory_than_in_the_file_or_than_four_bits(name: str):
    kind = BLOCK_TYPES[name]
    weight = random_weight(kind)
    kernel = PackedBlockKernel(weight, kind)
    found = sum(parameter.nbytes for parameter in kernel.parameters())
    assert found == num_bytes(kind, COLUMNS, ROWS)
    assert found <= max(1.12 * weight.nbytes, 4.32 / 8 * ROWS * COLUMNS)
