"""Configs of quantized checkpoints as they are published, and of one layer what is stored: each is
taken, or refused in a sentence that names it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from axion.errors import ModelLoadError
from axion.quantization.registry import quantization_method
from axion.quantization.stored import StoredTensor

Stored = dict[str, tuple[str, tuple[int, ...]]]


class Layer(NamedTuple):
    """One layer of a checkpoint.

    Attributes:
        stored: number format and shape, by the part of the name behind the layer's.
        format: the class that reads it.
    """

    name: str
    in_features: int
    out_features: int
    stored: Stored
    format: str


K_PROJ = ("model.layers.0.self_attn.k_proj", 4096, 1024)
IN_TEXT = ("language_model.model.layers.0.self_attn.k_proj", 5120, 1024)
EXPERT = ("model.layers.3.mlp.experts.7.down_proj", 2048, 7168)


def group(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """A config group of compressed-tensors, with what all have."""
    common = {"dynamic": False, "observer": "minmax", "observer_kwargs": {}, "symmetric": True}
    common |= {"actorder": None, "block_structure": None, "group_size": None}
    return {
        "input_activations": inputs,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": common | weights,
    }


def llm_compressor(format: str, *groups: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "config_groups": {f"group_{i}": own for i, own in enumerate(groups)},
        "format": format,
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.11.0",
        **fields,
    }


PER_TOKEN = {"dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
GPTQ = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True, "quant_method": "gptq"}
GPTQ_STORED: Stored = {
    "qweight": ("I32", (512, 1024)),
    "qzeros": ("I32", (32, 128)),
    "scales": ("F16", (32, 1024)),
}
AWQ = {"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm", "zero_point": True}
AWQ_STORED: Stored = {
    "qweight": ("I32", (4096, 128)),
    "qzeros": ("I32", (32, 128)),
    "scales": ("F16", (32, 1024)),
}
DEEPSEEK = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
NVFP4_STORED: Stored = {
    "weight": ("U8", (7168, 1024)),
    "weight_scale": ("F8_E4M3", (7168, 128)),
    "weight_scale_2": ("F32", ()),
    "input_scale": ("F32", ()),
}
AUTO_ROUND = {
    **{"amp": True, "autoround_version": "0.5.1", "batch_size": 8, "bits": 4, "data_type": "int"},
    **{
        "enable_quanted_input": True,
        "group_size": 128,
        "iters": 1000,
        "quant_method": "auto-round",
    },
    **{"packing_format": "auto_round:auto_gptq", "sym": True, "to_quant_block_names": None},
}


def modelopt(algorithm: str, **fields: Any) -> dict[str, Any]:
    return {
        "producer": {"name": "modelopt", "version": "0.29.0"},
        "quantization": {
            "quant_algo": algorithm,
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head", "model.layers.0*"],
            **fields,
        },
        "quant_method": "modelopt",
    }


def e4m3(rows: int, columns: int, scale: str, dtype: str, shape: tuple[int, ...]) -> Stored:
    return {"weight": ("F8_E4M3", (rows, columns)), scale: (dtype, shape)}


TAKEN: dict[str, tuple[dict[str, Any], Layer]] = {
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16": (
        llm_compressor("pack-quantized", group(INT4)),
        Layer(
            *K_PROJ,
            {
                "weight_packed": ("I32", (1024, 512)),
                "weight_scale": ("BF16", (1024, 32)),
                "weight_shape": ("I64", (2,)),
            },
            "GroupedFormat",
        ),
    ),
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8": (
        llm_compressor(
            "int-quantized",
            group(
                {"num_bits": 8, "type": "int", "strategy": "channel"}, PER_TOKEN | {"type": "int"}
            ),
        ),
        Layer(
            *K_PROJ,
            {"weight": ("I8", (1024, 4096)), "weight_scale": ("BF16", (1024, 1))},
            "Int8Format",
        ),
    ),
    "RedHatAI/Mistral-Small-3.1-24B-Instruct-2503-FP8-dynamic": (
        llm_compressor(
            "float-quantized",
            group(
                {"num_bits": 8, "type": "float", "strategy": "channel"},
                PER_TOKEN | {"type": "float"},
            ),
            ignore=["re:.*lm_head", "re:vision_tower.*", "re:multi_modal_projector.*"],
        ),
        Layer(*IN_TEXT, e4m3(1024, 5120, "weight_scale", "BF16", (1024, 1)), "Float8Format"),
    ),
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8": (
        llm_compressor(
            "float-quantized",
            group(
                {"num_bits": 8, "type": "float", "strategy": "tensor"},
                {"dynamic": False, "num_bits": 8, "type": "float", "strategy": "tensor"},
            ),
        ),
        Layer(
            *K_PROJ,
            e4m3(1024, 4096, "weight_scale", "BF16", (1,)) | {"input_scale": ("BF16", (1,))},
            "Float8Format",
        ),
    ),
    "RedHatAI/Qwen3-8B-FP8-block": (
        llm_compressor(
            "float-quantized",
            group(
                {
                    **{"num_bits": 8, "type": "float", "strategy": "block"},
                    "block_structure": [128, 128],
                },
                {"dynamic": True, "num_bits": 8, "strategy": "group", "group_size": 128},
            ),
        ),
        Layer(*K_PROJ, e4m3(1024, 4096, "weight_scale", "BF16", (8, 32)), "Float8Format"),
    ),
    "RedHatAI/Qwen3-8B-NVFP4": (
        llm_compressor(
            "nvfp4-pack-quantized",
            group(
                {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
                {"dynamic": "local", "num_bits": 4, "strategy": "tensor_group", "group_size": 16},
            ),
        ),
        Layer(
            *K_PROJ,
            {
                "weight_packed": ("U8", (1024, 2048)),
                "weight_scale": ("F8_E4M3", (1024, 256)),
                "weight_global_scale": ("F32", (1,)),
                "input_global_scale": ("F32", (1,)),
            },
            "Nvfp4Format",
        ),
    ),
    "cpatonn/Qwen3-30B-A3B-Instruct-2507-AWQ-4bit": (
        llm_compressor("pack-quantized", group(INT4 | {"group_size": 32, "symmetric": False})),
        Layer(
            *K_PROJ,
            {
                "weight_packed": ("I32", (1024, 512)),
                "weight_scale": ("BF16", (1024, 128)),
                "weight_zero_point": ("I32", (128, 128)),
                "weight_shape": ("I64", (2,)),
            },
            "GroupedFormat",
        ),
    ),
    "moonshotai/Kimi-K2-Thinking": (
        llm_compressor(
            "pack-quantized",
            group(INT4 | {"group_size": 32}),
            ignore=["lm_head", r"re:.*self_attn.*", r"re:.*shared_experts.*"],
        ),
        Layer(
            *EXPERT,
            {
                "weight_packed": ("I32", (7168, 256)),
                "weight_scale": ("BF16", (7168, 64)),
                "weight_shape": ("I32", (2,)),
            },
            "GroupedFormat",
        ),
    ),
    "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4": (
        GPTQ
        | {"batch_size": 1, "damp_percent": 0.01, "exllama_config": {"version": 1}}
        | {"modules_in_block_to_quantize": None, "use_exllama": True, "tokenizer": None},
        Layer(*K_PROJ, GPTQ_STORED, "GptqFormat"),
    ),
    "Qwen/Qwen3-30B-A3B-GPTQ-Int4": (
        GPTQ
        | {"checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": False}
        | {"meta": {"quantizer": ["gptqmodel:2.2.0"]}, "dynamic": {"-:.*mlp.gate$": {}}},
        Layer(*K_PROJ, GPTQ_STORED, "GptqFormat"),
    ),
    "TheBloke/Llama-2-7B-Chat-GPTQ": (
        GPTQ | {"damp_percent": 0.01, "true_sequential": True, "model_file_base_name": "model"},
        Layer(*K_PROJ, GPTQ_STORED, "GptqFormat"),
    ),
    "TheBloke/Mistral-7B-Instruct-v0.2-AWQ": (AWQ, Layer(*K_PROJ, AWQ_STORED, "AwqFormat")),
    "Qwen/Qwen2.5-VL-7B-Instruct-AWQ": (
        AWQ | {"modules_to_not_convert": ["visual"]},
        Layer(*K_PROJ, AWQ_STORED, "AwqFormat"),
    ),
    "Qwen/Qwen3-32B-AWQ": (
        AWQ | {"backend": "autoawq", "do_fuse": False, "modules_to_fuse": None},
        Layer(*K_PROJ, AWQ_STORED, "AwqFormat"),
    ),
    "deepseek-ai/DeepSeek-V3": (
        DEEPSEEK,
        Layer(
            *("model.layers.0.self_attn.kv_a_proj_with_mqa", 7168, 576),
            e4m3(576, 7168, "weight_scale_inv", "F32", (5, 56)),
            "Float8Format",
        ),
    ),
    "deepseek-ai/DeepSeek-V3.1": (
        DEEPSEEK | {"scale_fmt": "ue8m0"},
        Layer(*EXPERT, e4m3(7168, 2048, "weight_scale_inv", "F32", (56, 16)), "Float8Format"),
    ),
    "deepseek-ai/DeepSeek-V4-Flash": (
        DEEPSEEK | {"scale_fmt": "ue8m0", "expert_dtype": "fp4"},
        Layer(
            *EXPERT,
            {"weight": ("I8", (7168, 1024)), "scale": ("F8_E8M0", (7168, 64))},
            "Mxfp4PackedFormat",
        ),
    ),
    "Qwen/Qwen3-8B-FP8": (
        DEEPSEEK,
        Layer(*K_PROJ, e4m3(1024, 4096, "weight_scale_inv", "BF16", (8, 32)), "Float8Format"),
    ),
    "Qwen/Qwen3.5-35B-A3B-FP8": (
        DEEPSEEK | {"modules_to_not_convert": ["lm_head", "model.visual.blocks.0.attn.qkv"]},
        Layer(
            *("model.language_model.layers.0.mlp.experts.0.down_proj", 512, 2048),
            e4m3(2048, 512, "weight_scale_inv", "BF16", (16, 4)),
            "Float8Format",
        ),
    ),
    "mistralai/Ministral-3-8B-Instruct-2512": (
        {
            **{"activation_scheme": "static", "quant_method": "fp8", "weight_block_size": None},
            "modules_to_not_convert": ["model.vision_tower", "lm_head"],
            "dequantize": False,
        },
        Layer(
            *IN_TEXT,
            e4m3(1024, 5120, "weight_scale_inv", "BF16", ()) | {"activation_scale": ("BF16", ())},
            "Float8Format",
        ),
    ),
    "MiniMaxAI/MiniMax-M3-MXFP8": (
        {
            **{"quant_method": "mxfp8", "activation_scheme": "dynamic", "fmt": "e4m3"},
            **{"weight_block_size": [1, 32], "scale_fmt": "ue8m0", "ignored_layers": ["lm_head"]},
        },
        Layer(*EXPERT, e4m3(7168, 2048, "weight_scale_inv", "U8", (7168, 64)), "Float8Format"),
    ),
    "neuralmagic/Meta-Llama-3-8B-Instruct-FP8": (
        {"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"},
        Layer(
            *K_PROJ,
            e4m3(1024, 4096, "weight_scale", "F32", (1,)) | {"input_scale": ("F32", (1,))},
            "Float8Format",
        ),
    ),
    "meta-llama/Llama-3.1-405B-Instruct-FP8": (
        {
            **{"activation_scale_ub": 1200.0, "quant_method": "fbgemm_fp8"},
            "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"],
        },
        Layer(
            *EXPERT,
            e4m3(7168, 2048, "weight_scale", "F32", (7168, 1)) | {"input_scale_ub": ("F32", (1,))},
            "Float8Format",
        ),
    ),
    "openai/gpt-oss-20b": (
        {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
            "quant_method": "mxfp4",
        },
        Layer(
            *("model.layers.0.mlp.experts.down_proj", 2880, 2880),
            {"blocks": ("U8", (2880, 90, 16)), "scales": ("U8", (2880, 90))},
            "Mxfp4Format",
        ),
    ),
    "unsloth/Llama-3.1-8B-Instruct-bnb-4bit": (
        {
            **{"_load_in_4bit": True, "load_in_4bit": True, "quant_method": "bitsandbytes"},
            **{"bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8"},
            **{"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            **{"llm_int8_skip_modules": ["lm_head", "vision_tower"], "llm_int8_threshold": 6.0},
        },
        Layer(
            *K_PROJ,
            {
                "weight": ("U8", (2097152, 1)),
                "weight.absmax": ("U8", (65536,)),
                "weight.nested_absmax": ("F32", (256,)),
                "weight.nested_quant_map": ("F32", (256,)),
                "weight.quant_map": ("F32", (16,)),
                "weight.quant_state.bitsandbytes__nf4": ("U8", (156,)),
            },
            "FourBitFormat",
        ),
    ),
    "nvidia/Llama-3.1-8B-Instruct-FP8": (
        modelopt("FP8"),
        Layer(
            *K_PROJ,
            e4m3(1024, 4096, "weight_scale", "F32", ())
            | {"input_scale": ("F32", ()), "k_scale": ("F32", ())},
            "Float8Format",
        ),
    ),
    "nvidia/DeepSeek-R1-0528-NVFP4": (
        modelopt("NVFP4", group_size=16),
        Layer(*EXPERT, NVFP4_STORED, "Nvfp4Format"),
    ),
    "nvidia/Kimi-K3-NVFP4": (
        {
            **{"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "ignore": ["lm_head"]},
            "quantized_layers": {
                "model.layers.3.self_attn.k_proj": {"quant_algo": "FP8_PB_WO", "group_size": 128},
                "model.layers.3.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16},
            },
        },
        Layer(*K_PROJ, e4m3(1024, 4096, "weight_scale", "F32", (8, 1, 32, 1)), "Float8Format"),
    ),
    "ModelOpt, a scale for each output": (
        modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
        Layer(*K_PROJ, e4m3(1024, 4096, "weight_scale", "F32", (1024,)), "Float8Format"),
    ),
    "amd/Llama-3.1-8B-Instruct-FP8-KV": (
        {"quant_method": "quark", "export": {"pack_method": "reorder"}, "exclude": ["lm_head"]},
        Layer(
            *K_PROJ,
            e4m3(1024, 4096, "weight_scale", "F32", ())
            | {"input_scale": ("F32", ()), "output_scale": ("F32", ())},
            "Float8Format",
        ),
    ),
    "amd/DeepSeek-R1-MXFP4-Preview": (
        {"quant_method": "quark", "export": {"pack_method": "reorder"}, "exclude": ["lm_head"]},
        Layer(
            *EXPERT,
            {"weight": ("U8", (7168, 1024)), "weight_scale": ("U8", (7168, 64))},
            "Mxfp4PackedFormat",
        ),
    ),
    "Intel/Qwen2.5-7B-Instruct-int4-auto-round": (
        AUTO_ROUND | {"extra_config": {"model.layers.0.mlp.gate": {"bits": 16}}},
        Layer(*K_PROJ, GPTQ_STORED, "GptqFormat"),
    ),
    "Intel/Qwen3-30B-A3B-mxfp4-AutoRound": (
        AUTO_ROUND
        | {"data_type": "mx_fp", "group_size": 32, "act_bits": 4}
        | {"packing_format": "auto_round:llm_compressor"},
        Layer(
            *K_PROJ,
            {"weight_packed": ("U8", (1024, 2048)), "weight_scale": ("U8", (1024, 128))},
            "Mxfp4PackedFormat",
        ),
    ),
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nm-testing/TinyLlama-1.1B-Chat-marlin": (
        GPTQ | {"is_marlin_format": True},
        "GPTQ in the format 'marlin', which is not supported: expected gptq or gptq_v2",
    ),
    "mit-han-lab/Llama-3-8B-AWQ": (
        AWQ | {"backend": "llm-awq", "version": "gemv"},
        "AWQ in the version 'llm-awq', which is not supported: expected gemm or gemv",
    ),
    "RedHatAI/Sparse-Llama-3.1-8B-2of4": (
        llm_compressor("marlin-24", group(INT4), sparsity_config={"format": "sparse-24-bitmask"}),
        "sparse weights",
    ),
    "pytorch/Qwen3-8B-INT4": (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
        "quantized (torchao), which is not supported",
    ),
    "mlx-community/Qwen3-8B-4bit": (
        {"group_size": 64, "bits": 4, "mode": "affine"},
        "quantized (MLX), which is not supported",
    ),
    "mobiuslabsgmbh/Llama-3.1-8B-Instruct_4bitgs64_hqq_hf": (
        {"quant_method": "hqq", "quant_config": {}},
        "quantized (hqq), which is not supported",
    ),
    "ISTA-DASLab/Meta-Llama-3-8B-AQLM-2Bit-1x16": (
        {"quant_method": "aqlm", "nbits_per_codebook": 16},
        "quantized (aqlm), which is not supported",
    ),
    "turboderp/Llama-3.1-8B-Instruct-exl3": (
        {"quant_method": "exl3", "bits": 4.0},
        "quantized (exl3), which is not supported",
    ),
    "microsoft/bitnet-b1.58-2B-4T": (
        {"quant_method": "bitnet", "linear_class": "autobitlinear"},
        "quantized (bitnet), which is not supported",
    ),
    "nvidia/Llama-3.1-8B-Instruct-AWQ": (
        modelopt("W4A16_AWQ", group_size=128),
        "quantized (modelopt) by W4A16_AWQ, which is not supported. Supported: FP8",
    ),
}

STATE = b'{"quant_type": "nf4", "blocksize": 64, "nested_blocksize": 256, "dtype": "bfloat16", '
STATE += b'"shape": [1024, 4096], "nested_offset": 0.046875}'


def stored_tensor(name: str, suffix: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    def read() -> Tensor:
        if "quant_state" in suffix:
            return torch.tensor(list(STATE.ljust(shape[0])), dtype=torch.uint8)
        return torch.zeros(shape)

    return StoredTensor(f"{name}.{suffix}", "model.safetensors", shape, dtype, read)


@pytest.mark.parametrize("repository", TAKEN)
def test_a_published_checkpoint_is_read(repository: str) -> None:
    config, layer = TAKEN[repository]
    method = quantization_method({"quantization_config": config})
    tensors = {
        suffix: stored_tensor(layer.name, suffix, *stored)
        for suffix, stored in layer.stored.items()
    }
    source = method.source(layer.name, tensors, layer.in_features, layer.out_features)  # type: ignore[attr-defined]
    assert type(source.format).__name__ == layer.format
    read = {
        name: stored
        for name, stored in layer.stored.items()
        if not any(re.fullmatch(p, f"{layer.name}.{name}") for p in method.ignored_tensors)
    }
    expected = source.expected()
    assert {name.removeprefix(f"{layer.name}."): own.shape for name, own in expected.items()} == {
        name: shape for name, (_, shape) in read.items()
    }
    for name, (dtype, _) in read.items():
        assert dtype in expected[f"{layer.name}.{name}"].dtypes


@pytest.mark.parametrize("repository", REFUSED)
def test_what_is_not_read_is_refused_by_name(repository: str) -> None:
    config, sentence = REFUSED[repository]
    with pytest.raises(ModelLoadError) as caught:
        quantization_method({"quantization_config": config})
    assert sentence in caught.value.message
