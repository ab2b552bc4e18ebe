"""E4M3 by blocks, by outputs and by tensors, as checkpoints have it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axion.errors import ModelLoadError
from axion.quantization.float8 import Float8Kernel, widen
from axion.quantization.mxfp4 import Mxfp4Kernel
from tests.quantization.pairs import Packed, assert_same, load, save_pair, weight_bytes

DYNAMIC = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCK = (16, 32)
POSITIVE = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
NUMBERS = torch.cat((POSITIVE, -POSITIVE))  # E2M1, by their codes


def by_block(name: str, weight: Tensor, dtype: torch.dtype = torch.float32) -> Packed | None:
    if name == "lm_head":
        return None
    (rows, columns), (num_rows, num_columns) = BLOCK, weight.shape
    grid = (-(-num_rows // rows), -(-num_columns // columns))
    padded = torch.zeros(grid[0] * rows, grid[1] * columns)
    padded[:num_rows, :num_columns] = weight
    blocks = padded.view(grid[0], rows, grid[1], columns)
    scale = (blocks.abs().amax((1, 3)) / 448).to(dtype)
    spread = scale.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    spread = spread[:num_rows, :num_columns]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    return Packed({"weight": codes, "weight_scale_inv": scale}, codes.float() * spread)


def by_output(name: str, weight: Tensor) -> Packed | None:
    if name == "lm_head":
        return None
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return Packed({"weight": codes, "weight_scale": scale}, codes.float() * scale)


def by_tensor(shape: tuple[int, ...]) -> Callable[[str, Tensor], Packed]:
    def pack(name: str, weight: Tensor) -> Packed:
        scale = weight.abs().amax() / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        tensors = {
            "weight": codes,
            "weight_scale": scale.expand(shape).clone(),
            "input_scale": torch.ones(shape),
        }
        return Packed(tensors, codes.float() * scale)

    return pack


def by_block_bfloat16(name: str, weight: Tensor) -> Packed | None:
    return by_block(name, weight, torch.bfloat16)


def mxfp8(key: str) -> Callable[[str, Tensor], Packed | None]:
    def pack(name: str, weight: Tensor) -> Packed | None:
        if name == "lm_head":
            return None
        powers = (weight.unflatten(1, (-1, 32)).abs().amax(-1) / 448).log2().ceil()
        steps = powers.exp2().repeat_interleave(32, 1)
        codes = (weight / steps).to(torch.float8_e4m3fn)
        scale = (powers + 127).to(torch.uint8)
        return Packed({"weight": codes, key: scale}, codes.float() * steps)

    return pack


MXFP8 = {"quant_method": "mxfp8", "weight_block_size": [1, 32], "ignored_layers": ["lm_head"]}


@pytest.mark.parametrize(
    ("case", "pack", "config"),
    [
        ("llama", mxfp8("weight_scale_inv"), MXFP8 | {"scale_fmt": "ue8m0"}),
        ("mixtral", mxfp8("weight_scale"), MXFP8),
        ("llama", by_block, DYNAMIC | {"weight_block_size": list(BLOCK)}),
        ("qwen3", by_block_bfloat16, DYNAMIC | {"weight_block_size": list(BLOCK), "fmt": "e4m3"}),
        # Its sizes are no multiples of the block's.
        ("llama-head-dim", by_block, DYNAMIC | {"weight_block_size": list(BLOCK)}),
        ("deepseek-v3", by_block, DYNAMIC | {"weight_block_size": list(BLOCK)}),
        ("mixtral", by_block, DYNAMIC | {"weight_block_size": list(BLOCK)}),
        ("llama", by_output, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
        ("phi3", by_tensor(()), DYNAMIC | {"activation_scheme": "static"}),
        ("llama", by_tensor((1,)), DYNAMIC | {"activation_scheme": "static"}),
    ],
)
def test_the_answers_are_those_of_the_dequantized_model(
    case: str, pack: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    quantized, plain = (load(path) for path in save_pair(case, tmp_path, pack, config))
    assert any(isinstance(module, Float8Kernel) for module in quantized.modules())
    assert_same(quantized, plain)


def as_deepseek_v4(name: str, weight: Tensor) -> Packed | None:
    """Experts of four bits, all else by blocks, but what makes entries of tokens; scales of one
    byte, under other names."""
    if "compressor" in name or name.endswith((".ape", "weights_proj")):
        return None
    if ".experts." not in name:
        packed = by_block(name, weight)
        return packed and Packed(
            {"weight": packed.tensors["weight"], "scale": packed.tensors["weight_scale_inv"]},
            packed.weight,
        )
    blocks = weight.unflatten(1, (-1, 32))
    scale = (blocks.abs().amax(-1) / 6).log2().ceil().exp2().to(torch.float8_e8m0fnu)
    powers = scale.float()[..., None]
    codes = (blocks[..., None] / powers[..., None] - NUMBERS).abs().argmin(-1)
    halves = codes.flatten(1).unflatten(1, (-1, 2)).to(torch.uint8)
    stored = (halves[..., 0] | halves[..., 1] << 4).view(torch.int8)
    return Packed({"weight": stored, "scale": scale}, (NUMBERS[codes] * powers).flatten(1))


def test_experts_of_four_bits_among_weights_of_eight(tmp_path: Path) -> None:
    config = DYNAMIC | {"weight_block_size": list(BLOCK), "scale_fmt": "ue8m0"}
    path, plain = save_pair("deepseek-v4", tmp_path, as_deepseek_v4, config)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"expert_dtype": "fp4"}))
    quantized = load(path)
    kinds = {type(module) for module in quantized.modules()}
    assert {Float8Kernel, Mxfp4Kernel} <= kinds
    assert_same(quantized, load(plain))


def test_a_power_of_two_takes_two_bytes(tmp_path: Path) -> None:
    quantized, plain = map(load, save_pair("llama", tmp_path, mxfp8("weight_scale"), MXFP8))
    layers, plain_layers = quantized.model.layers[0], plain.model.layers[0]
    assert weight_bytes(layers.mlp) == weight_bytes(plain_layers.mlp) / 32 * 8.5


def test_a_weight_takes_one_byte(tmp_path: Path) -> None:
    config = DYNAMIC | {"weight_block_size": list(BLOCK)}
    quantized, plain = (load(path) for path in save_pair("llama", tmp_path, by_block, config))
    layers, plain_layers = quantized.model.layers[0], plain.model.layers[0]
    ratio = weight_bytes(layers.mlp) / weight_bytes(plain_layers.mlp)
    assert ratio == pytest.approx(1 / 4, rel=0.02)


def test_scales_of_inputs_and_of_the_cache_are_not_needed(tmp_path: Path) -> None:
    path, plain = save_pair("llama", tmp_path, by_tensor(()), DYNAMIC)
    tensors = load_file(path / "model.safetensors")
    for name in ("k_scale", "v_scale", "k_proj.output_scale"):
        tensors[f"model.layers.0.self_attn.{name}"] = torch.ones(1)
    save_file(tensors, path / "model.safetensors")
    assert_same(load(path), load(plain))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_scheme": "psychic"}, "with activation_scheme='psychic', which is not"),
        ({"fmt": "e5m2"}, "with fmt='e5m2', which is not"),
        ({"expert_dtype": "fp5"}, "with expert_dtype='fp5', which is not"),
        ({"weight_block_size": [128]}, "must be two sizes"),
        ({"weight_block_size": [0, 128]}, "must be two sizes"),
    ],
)
def test_what_is_not_supported_is_named(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save_pair("llama", tmp_path, by_tensor(()), DYNAMIC | fields)[0]
    with pytest.raises(ModelLoadError, match=message):
        load(path)


def test_weights_without_scales_are_refused(tmp_path: Path) -> None:
    path = save_pair("llama", tmp_path, by_output, DYNAMIC)[0]
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight_scale"
    del tensors[name]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"mlp\.down_proj\.weight_scale_inv is missing"):
        load(path)


def test_experts_that_are_stored_as_one_tensor(tmp_path: Path) -> None:
    """As transformers 5 writes them."""
    config = DYNAMIC | {"weight_block_size": list(BLOCK)}
    path, plain = save_pair("mixtral", tmp_path, by_block, config)
    tensors = load_file(path / "model.safetensors")
    for name in [name for name in tensors if ".experts.0.w2.weight" in name]:
        experts = [tensors.pop(name.replace("experts.0", f"experts.{i}")) for i in range(4)]
        stacked = name.replace("0.w2.weight_scale_inv", "down_proj_scale_inv")
        tensors[stacked.replace("0.w2.weight", "down_proj")] = torch.stack(experts)
    save_file(tensors, path / "model.safetensors")
    assert_same(load(path), load(plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_code_becomes_its_number(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[~codes.float().isnan()]
    assert torch.equal(widen(codes, dtype), codes.to(dtype))


def test_a_config_of_the_text_part_is_found(tmp_path: Path) -> None:
    path, plain = save_pair("gemma3-seeing", tmp_path, by_tensor(()), DYNAMIC)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (path / "config.json").write_text(json.dumps(config))
    assert_same(load(path), load(plain))
