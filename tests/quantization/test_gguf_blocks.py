"""Each format of GGUF files against gguf's own, over random bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from axion.hub.gguf import TENSOR_TYPES, TensorType
from axion.quantization.gguf import BLOCK_TYPES, BlockFormat, BlockKernel, GGUFMethod
from axion.quantization.gguf_blocks import dequantize
from axion.quantization.integers import AtenInt4Kernel, AtenInt8Kernel, reads_packed_rows
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


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_laid_out_for_aten_it_is_the_weight_within_little_more_than_bfloat16(name: str):
    kind = BLOCK_TYPES[name]
    weight, format = random_weight(kind), BlockFormat(kind)
    exact = dequantize(weight, kind)
    kernel = format.kernel({"weight": weight}, torch.bfloat16)
    assert isinstance(kernel, AtenInt4Kernel | AtenInt8Kernel)
    num_bytes = sum(parameter.nbytes for parameter in kernel.parameters())
    assert num_bytes == format.num_bytes(COLUMNS, ROWS, torch.bfloat16)
    limit = 0.003 if name in ("Q8_0", "Q4_0", "Q4_1", "Q4_K") else 0.009
    assert error(kernel.dequantize(torch.float32), exact) <= limit
    for num_rows in (1, 3, 200):
        x = torch.randn(num_rows, COLUMNS, generator=torch.Generator().manual_seed(1)).bfloat16()
        assert error(kernel(x), x.float() @ exact.T) <= limit + 0.003
    if reads_packed_rows(ROWS):
        ids = torch.tensor([0, 31, 32, 63, 64, 127, 191, 5])
        assert error(kernel.embed(ids, torch.float32), exact[ids]) <= limit


@pytest.mark.parametrize(("max_bits", "name"), [(4, "Q6_K"), (0, "Q8_0"), (0, "Q4_K")])
def test_of_more_bits_than_it_may_take_it_stays_what_it_is(max_bits: int, name: str):
    weight, format = random_weight(kind := BLOCK_TYPES[name]), BlockFormat(kind, max_bits)
    kernel = format.kernel({"weight": weight}, torch.bfloat16)
    assert isinstance(kernel, BlockKernel)
    assert weight.nbytes == format.num_bytes(COLUMNS, ROWS, torch.bfloat16)


@pytest.mark.parametrize(
    ("num_rows", "is_head", "expected"),
    [(192, True, 8 if reads_packed_rows(192) else 0), (192, False, 0), (199, True, 0)],
    ids=["head", "embedding", "rows that fill no block"],
)
def test_an_embedding_is_laid_out_if_it_is_a_head_whose_rows_can_be_read(
    num_rows: int, is_head: bool, expected: int
):
    stored = StoredTensor("embed_tokens.weight", "m.gguf", (num_rows, 512), "Q6_K", torch.empty)
    format = GGUFMethod({"quant_method": "gguf"}).embedding_format(stored, is_head)
    assert isinstance(format, BlockFormat)
    assert format.max_bits == expected
