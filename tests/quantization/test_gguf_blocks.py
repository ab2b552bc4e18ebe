"""Each format of GGUF files against gguf's own, over random bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from axion.hub.gguf import TENSOR_TYPES, TensorType
from axion.quantization.gguf import BLOCK_TYPES, BlockFormat, BlockKernel, GGUFMethod
from axion.quantization.gguf_blocks import dequantize
from axion.quantization.stored import StoredTensor


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


ROWS, COLUMNS = 192, 512
# Of each block, where its float16 numbers are.
HALVES = {
    **{"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,)},
    **{"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)},
    **{"IQ1_M": (), "MXFP4": (), "NVFP4": ()},
}


def random_weight(kind: TensorType) -> torch.Tensor:
    random = np.random.default_rng(kind.num_bytes)
    shape = (ROWS, COLUMNS // kind.block_size, kind.num_bytes)
    blocks = random.integers(0, 256, size=shape, dtype=np.uint8)
    if kind.name == "MXFP4":
        blocks[..., 0] = 120 + blocks[..., 0] % 8
    if kind.name == "NVFP4":
        blocks[..., :4] = 40 + blocks[..., :4] % 16
    if kind.name == "IQ1_M":  # 2**-10, in the last bits of four words
        blocks[..., 49::2] &= 15
        blocks[..., 53] |= 0x40
        blocks[..., 55] |= 0x10
    for at in HALVES.get(kind.name, (0,)):
        scales = random.uniform(0.0005, 0.001, size=shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return torch.from_numpy(blocks.reshape(ROWS, -1))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def test_where_no_kernel_takes_it_a_weight_stays_as_it_is_in_the_file():
    kind = BLOCK_TYPES["Q6_K"]
    weight, format = random_weight(kind), BlockFormat(kind)
    kernel = format.kernel({"weight": weight}, torch.float32)
    assert isinstance(kernel, BlockKernel)
    assert weight.nbytes == format.num_bytes(COLUMNS, ROWS, torch.float32)


@pytest.mark.parametrize("is_head", [True, False])
def test_an_embedding_is_laid_out_if_it_is_a_head(is_head: bool):
    stored = StoredTensor("embed_tokens.weight", "m.gguf", (192, 512), "Q6_K", torch.empty)
    format = GGUFMethod({"quant_method": "gguf"}).embedding_format(stored, is_head)
    assert format == BlockFormat(BLOCK_TYPES["Q6_K"], is_packed=is_head)
