"""MXFP4 checkpoints, packed here as gpt-oss is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from axion.errors import ModelLoadError
from axion.quantization.mxfp4 import Mxfp4Kernel
from tests.parity.checkpoints import save_tiny
from tests.quantization.pairs import assert_same, load, weight_bytes

CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint whose experts are random blocks and scales, and a plain one that transformers
    made of it."""
    folder = tmp_path_factory.mktemp("gpt-oss")
    quantized, plain = (save_tiny("gpt-oss", folder / name) for name in ("quantized", "plain"))
    tensors = load_file(plain / "model.safetensors")
    weights = dict(tensors)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, in_features, out_features = tensors.pop(name).shape
        shape = (num_experts, out_features, in_features // 32)
        blocks = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(119, 124, shape, dtype=torch.uint8, generator=generator)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        weights[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    for path, stored in ((quantized, tensors), (plain, weights)):
        save_file(stored, path / "model.safetensors", {"format": "pt"})
    file = quantized / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": CONFIG}))
    return quantized, plain


def test_a_quantized_model_is_the_one_that_transformers_dequantizes(
    pair: tuple[Path, Path],
) -> None:
    assert_same(*(load(path) for path in pair))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_code_is_exact_in_any_number_format(dtype: torch.dtype) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(4, 4, 16)
    scales = torch.tensor([0, 1, 120, 254], dtype=torch.uint8).repeat(4, 1)
    kernel = Mxfp4Kernel(blocks, scales)
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    numbers = [*positive, *(-number for number in positive)]
    for row in range(4):
        expected = [
            numbers[code] * 2.0 ** (exponent - 127)
            for block, exponent in zip(blocks[row].tolist(), (0, 1, 120, 254), strict=True)
            for byte in block
            for code in (byte & 15, byte >> 4)
        ]
        ours = kernel.rows(row, row + 1, dtype)[0]
        assert torch.equal(ours, torch.tensor(expected, dtype=torch.float64).to(dtype))


def test_a_scale_that_is_no_number_makes_weights_that_are_none() -> None:
    kernel = Mxfp4Kernel(
        torch.ones(1, 1, 16, dtype=torch.uint8), torch.full((1, 1), 255, dtype=torch.uint8)
    )
    assert kernel.dequantize(torch.float32).isnan().all()


def test_experts_take_four_and_a_quarter_bits_a_weight(pair: tuple[Path, Path]) -> None:
    for dtype, bits in (("float32", 32), ("bfloat16", 16)):
        quantized, plain = (load(path, dtype) for path in pair)
        experts = quantized.model.layers[0].mlp.experts
        kernels = [m for m in experts.modules() if isinstance(m, Mxfp4Kernel)]
        assert len(kernels) == 2 * experts.gate_up_proj.num_experts
        num_weights = sum(kernel.in_features * kernel.out_features for kernel in kernels)
        saved = weight_bytes(plain) - weight_bytes(quantized)
        assert saved == len(quantized.model.layers) * num_weights * (bits - 4.25) / 8


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("blocks", lambda tensor: tensor[:, 1:], r"down_proj.blocks has shape .*expected"),
        ("scales", lambda tensor: tensor.to(torch.int8), "down_proj.scales is stored as I8"),
        ("scales", None, "down_proj.scales is missing"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_named(
    pair: tuple[Path, Path], suffix: str, change: object, message: str, tmp_path: Path
) -> None:
    name = f"model.layers.0.mlp.experts.down_proj_{suffix}"
    tensors = load_file(pair[0] / "model.safetensors")
    tensor: Tensor = tensors.pop(name)
    if callable(change):
        tensors[name] = change(tensor).contiguous()
    (tmp_path / "config.json").write_text((pair[0] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path)
