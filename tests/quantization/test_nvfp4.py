"""NVFP4 and MXFP4 as llm-compressor and ModelOpt store them, packed here; E4M3 by ModelOpt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from axion.errors import ModelLoadError
from axion.quantization.float8 import Float8Kernel
from axion.quantization.modelopt import ModelOpt
from axion.quantization.mxfp4 import Mxfp4Kernel
from axion.quantization.nvfp4 import Nvfp4Kernel
from axion.quantization.scaled import ScaledInputKernel
from axion.quantization.stored import StoredTensor
from tests.quantization.pairs import Packed, assert_same, load, save_pair, weight_bytes
from tests.quantization.test_compressed_tensors import config, group
from tests.quantization.test_fp8 import by_tensor, mxfp8

# E2M1, by code.
NUMBERS = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M1 = torch.tensor([*NUMBERS, *(-number for number in NUMBERS)])

LLM_COMPRESSOR = config(group(4, "tensor_group", "float"), format="nvfp4-pack-quantized")
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}


def packed_codes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest E2M1 of `[rows, columns]`, two in a byte, and what they stand for."""
    codes = (values[..., None] - E2M1).abs().argmin(-1)
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), E2M1[codes]


def nvfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, scales and factor, and what they stand for."""
    blocks = weight.unflatten(1, (-1, 16))
    factor = weight.abs().amax() / (6 * 448)
    scales = (blocks.abs().amax(-1) / 6 / factor).to(torch.float8_e4m3fn)
    steps = (scales.float() * factor).repeat_interleave(16, 1)
    codes, numbers = packed_codes(weight / steps)
    return codes, scales, factor, numbers * steps


def llm_compressor(name: str, weight: Tensor) -> Packed | None:
    if name == "lm_head":
        return None
    codes, scales, factor, meant = nvfp4(weight)
    tensors = {
        "weight_packed": codes,
        "weight_scale": scales,
        "weight_global_scale": (1 / factor)[None],
        "input_global_scale": torch.ones(1),
    }
    return Packed(tensors, meant)


def modelopt(name: str, weight: Tensor) -> Packed | None:
    if name == "lm_head":
        return None
    codes, scales, factor, meant = nvfp4(weight)
    tensors = {
        "weight": codes,
        "weight_scale": scales,
        "weight_scale_2": factor,
        "input_scale": torch.ones(()),
    }
    if name.endswith("k_proj"):
        tensors["k_scale"] = torch.ones(())
    return Packed(tensors, meant)


def modelopt_awq(name: str, weight: Tensor) -> Packed | None:
    """Its inputs are scaled."""
    if name == "lm_head":
        return None
    factors = torch.linspace(0.5, 2, weight.shape[1]).bfloat16()
    packed = modelopt(name, weight / factors.float())
    assert packed is not None
    return Packed(packed.tensors | {"pre_quant_scale": factors}, packed.weight * factors.float())


def modelopt_mxfp4(name: str, weight: Tensor) -> Packed | None:
    packed = mxfp4(name, weight)
    return packed and packed._replace(
        tensors={name.removesuffix("_packed"): t for name, t in packed.tensors.items()}
    )


def mxfp4(name: str, weight: Tensor) -> Packed | None:
    if name == "lm_head":
        return None
    powers = (weight.unflatten(1, (-1, 32)).abs().amax(-1) / 4).log2().ceil()
    steps = powers.exp2().repeat_interleave(32, 1)
    codes, numbers = packed_codes(weight / steps)
    tensors = {"weight_packed": codes, "weight_scale": (powers + 127).to(torch.uint8)}
    return Packed(tensors, numbers * steps)


@pytest.mark.parametrize(
    ("case", "pack", "quantization", "kernel"),
    [
        ("llama", llm_compressor, LLM_COMPRESSOR, Nvfp4Kernel),
        ("mixtral", llm_compressor, LLM_COMPRESSOR, Nvfp4Kernel),
        ("llama", modelopt, MODELOPT, Nvfp4Kernel),
        ("llama", modelopt_awq, MODELOPT | {"quant_algo": "NVFP4_AWQ"}, ScaledInputKernel),
        ("mixtral", modelopt_awq, MODELOPT | {"quant_algo": "NVFP4_AWQ"}, ScaledInputKernel),
        ("llama", modelopt_mxfp4, MODELOPT | {"quant_algo": "W4A8_MXFP4_FP8"}, Mxfp4Kernel),
        ("llama", mxfp8("weight_scale"), MODELOPT | {"quant_algo": "MXFP8"}, Float8Kernel),
        ("llama", mxfp8("weight_scale"), config(group(8, "group", "float")), Float8Kernel),
        ("llama", mxfp4, config(group(4, "group", "float")), Mxfp4Kernel),
    ],
    ids=[
        *("llm-compressor", "llm-compressor, experts", "modelopt"),
        *("modelopt awq", "modelopt awq, experts", "modelopt mxfp4", "modelopt mxfp8"),
        *("mxfp8", "mxfp4"),
    ],
)
def test_the_answers_are_those_of_the_dequantized_model(
    case: str, pack: Any, quantization: dict[str, Any], kernel: type, tmp_path: Path
) -> None:
    quantized, plain = map(load, save_pair(case, tmp_path, pack, quantization))
    assert any(isinstance(module, kernel) for module in quantized.modules())
    assert_same(quantized, plain)


def test_a_weight_takes_four_and_a_half_bits_and_a_factor(tmp_path: Path) -> None:
    quantized, plain = map(load, save_pair("llama", tmp_path, llm_compressor, LLM_COMPRESSOR))
    layers = quantized.model.layers[0].mlp, plain.model.layers[0].mlp
    num_outputs = sum(
        module.out_features for module in layers[0].modules() if isinstance(module, Nvfp4Kernel)
    )
    ours, theirs = map(weight_bytes, layers)
    assert ours == theirs / 32 * 4.5 + 4 * num_outputs


@pytest.mark.parametrize("key", ["weight_scale", "weight_scale_inv"])
def test_modelopt_s_blocks_share_a_scale(key: str) -> None:
    weight, scale = torch.randn(200, 320).to(torch.float8_e4m3fn), torch.rand(2, 3) + 0.5
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :320]
    if key == "weight_scale":
        scale = scale[:, None, :, None]
    stored = {
        name: StoredTensor(name, "", tuple(tensor.shape), dtype, tensor.clone)
        for name, tensor, dtype in (("weight", weight, "F8_E4M3"), (key, scale, "F32"))
    }
    method = ModelOpt({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"})
    source = method.source("layer", stored, 320, 200)
    assert {name: shape for name, (shape, _) in source.expected().items()} == {
        f"layer.{name}": tensor.shape for name, tensor in stored.items()
    }
    found = source.dequantize(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(found, weight.float() * spread)


def test_modelopt_says_in_a_file_of_its_own_how_it_quantized(tmp_path: Path) -> None:
    path, plain = save_pair("llama", tmp_path, by_tensor(()), {})
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": []}
    file = {"producer": {"name": "modelopt"}, "quantization": quantization}
    (path / "hf_quant_config.json").write_text(json.dumps(file))
    assert_same(load(path), load(plain))


def test_other_algorithms_are_refused_by_name() -> None:
    with pytest.raises(ModelLoadError, match=r"modelopt.* by W4A8_AWQ"):
        ModelOpt({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"})


def test_inputs_that_do_not_fill_a_block_are_refused_by_name(tmp_path: Path) -> None:
    def pack(name: str, weight: Tensor) -> Packed | None:
        own = llm_compressor(name, weight[:, :48]) if name.endswith("0.mlp.down_proj") else None
        return own and own._replace(weight=weight)

    path, _ = save_pair("llama-head-dim", tmp_path, pack, LLM_COMPRESSOR)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 100}))
    with pytest.raises(ModelLoadError, match="down_proj has 100 inputs"):
        load(path)
