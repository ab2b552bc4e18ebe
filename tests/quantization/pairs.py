"""Pairs of tiny checkpoints: one quantized, and one with the weights that it stands for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axion.engine.loader import load_model
from axion.models.base import CausalLM
from axion.parity.harness import Harness, Run
from axion.quantization.layers import QuantizedExpertLinear, QuantizedLinear
from tests.parity.checkpoints import save_tiny

CPU = torch.device("cpu")
PROMPTS = [[5, 90, 33], [7 * i % 190 + 1 for i in range(40)]]
NUM_TOKENS = 12


class Packed(NamedTuple):
    """A weight in a format.

    Attributes:
        tensors: what is stored, by the part of the name behind the layer's (`qweight`).
        weight: what that stands for, `[out_features, in_features]`.
    """

    tensors: dict[str, Tensor]
    weight: Tensor


Pack = Callable[[str, Tensor], Packed | None]


def save_pair(
    case: str | Callable[[Path], object],
    folder: Path,
    pack: Pack,
    quantization: Mapping[str, Any],
) -> tuple[Path, Path]:
    """Save a tiny model in a format, and what that dequantizes to.

    Args:
        case: a row of the parity table, or what saves the model in a folder.
        pack: from the name of a layer that is no embedding, norm or router, and its weight; None:
            the weight stays.
        quantization: config.json's `quantization_config`.

    Returns:
        The folder of the quantized checkpoint, and that of the plain one.
    """
    quantized, plain = folder / "quantized", folder / "plain"
    for path in (quantized, plain):
        if isinstance(case, str):
            save_tiny(case, path)
        else:
            case(path)
    tensors = load_file(quantized / "model.safetensors")
    weights = dict(tensors)
    for name, weight in list(tensors.items()):
        layer = name.removesuffix(".weight")
        is_embedding = "embed" in layer or layer.endswith((".wte", ".wpe"))
        if layer == name or weight.dim() != 2 or is_embedding or layer.endswith(".gate"):
            continue
        if (packed := pack(layer, weight)) is not None:
            del tensors[name]
            tensors |= {f"{layer}.{key}": tensor for key, tensor in packed.tensors.items()}
            weights[name] = packed.weight
    for path, stored in ((quantized, tensors), (plain, weights)):
        stored = {name: tensor.contiguous() for name, tensor in stored.items()}
        save_file(stored, path / "model.safetensors", {"format": "pt"})
    file = quantized / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": dict(quantization)}
    file.write_text(json.dumps(config))
    return quantized, plain


def load(path: Path, dtype: str = "float32", **options: str) -> CausalLM:
    """The model, which must take as much memory as was counted before."""
    counted: list[int] = []
    model = load_model(
        path,
        device=CPU,
        dtype=dtype,
        on_progress=lambda done, total: counted.append(total),
        **options,
    )
    assert counted[-1] == weight_bytes(model)
    return model


def dequantized(model: CausalLM, plain: CausalLM) -> CausalLM:
    """`plain`, with the weights that the quantized `model` has."""
    for path, module in model.named_modules():
        if isinstance(module, QuantizedExpertLinear):
            weights = [expert.dequantize(model.dtype) for expert in module.experts]
            plain.get_submodule(path).weight.copy_(torch.stack(weights))
        elif isinstance(module, QuantizedLinear) and ".experts." not in path:
            plain.get_submodule(path).weight.copy_(module.dequantize(model.dtype))
    return plain


def generate(model: CausalLM) -> list[Run]:
    """What the model answers to `PROMPTS`, greedily."""
    runs = [Run(prompt) for prompt in PROMPTS]
    Harness(model).generate(runs, NUM_TOKENS)
    return runs


def assert_same(quantized: CausalLM, plain: CausalLM, tolerance: float = 1e-4) -> None:
    """Both answer the same tokens, and their logits differ by at most `tolerance`."""
    for ours, theirs in zip(generate(quantized), generate(plain), strict=True):
        assert ours.output == theirs.output
        difference = (torch.stack(ours.logits) - torch.stack(theirs.logits)).abs().max()
        assert difference <= tolerance, difference


def weight_bytes(model: CausalLM) -> int:
    """Bytes of the model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
