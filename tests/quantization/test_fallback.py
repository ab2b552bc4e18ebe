"""What transformers' classes serve is quantized as what Axion's own do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.linear import Linear
from axion.models.base import CausalLM
from axion.models.transformers_fallback import TransformersCausalLM
from axion.parity import tiny
from axion.quantization.layers import QuantizedExpertLinear, QuantizedLinear
from tests.parity.catalog import small_config
from tests.quantization.pairs import (
    Packed,
    assert_same,
    dequantized,
    generate,
    load,
    save_pair,
    weight_bytes,
)
from tests.quantization.test_awq import Awq
from tests.quantization.test_bitsandbytes import EightBit, FourBit
from tests.quantization.test_compressed_tensors import config, group, integers
from tests.quantization.test_fp8 import BLOCK, DYNAMIC, by_block
from tests.quantization.test_gptq import Gptq

DENSE, EXPERTS = "Jais2ForCausalLM", "MellumForCausalLM"
# Their class is none that goes through transformers' interface for experts.
OTHER_EXPERTS = "LongcatFlashForCausalLM"

FORMATS: dict[str, tuple[Any, dict[str, Any], float]] = {  # and at most so many bits of a weight
    "gptq": (Gptq(sym=False), Gptq(sym=False).config, 5),
    "awq": (Awq(), Awq().config, 5),
    "int8": (integers(8, 0, packed=False), config(group(8, "channel")), 9),
    "int4": (integers(4, 32), config(group(4, "group")), 5.5),
    "fp8": (by_block, DYNAMIC | {"weight_block_size": list(BLOCK)}, 8.5),
    "bnb4": (FourBit(), FourBit().config, 5),
    "bnb8": (EightBit(), EightBit.config, 9),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plain")
    for architecture in (DENSE, EXPERTS, OTHER_EXPERTS):
        tiny.build(small_config(architecture)).save_pretrained(folder / architecture)
    return {path.name: path for path in folder.iterdir()}


def quantized_bits(model: CausalLM) -> float:
    """Of a weight, on average over the layers that are quantized."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    own = [sum(p.nbytes for p in layer.kernels.parameters()) for layer in layers]
    return 8 * sum(own) / sum(layer.in_features * layer.out_features for layer in layers)


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_checkpoint_answers_as_what_it_stands_for(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pack, quantization, bits = FORMATS[name]
    quantized, plain = map(
        load, save_pair(partial(copytree, folders[DENSE]), tmp_path, pack, quantization)
    )
    assert isinstance(quantized, TransformersCausalLM)
    assert 0 < quantized_bits(quantized) <= bits
    assert not any(isinstance(module, nn.Linear) for module in quantized.modules())
    assert_same(quantized, plain)


@pytest.mark.parametrize("name", ["gptq", "fp8"])
def test_its_experts_stay_quantized_too(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pack, quantization, bits = FORMATS[name]
    quantized, plain = map(
        load, save_pair(partial(copytree, folders[EXPERTS]), tmp_path, pack, quantization)
    )
    stacks = [m for m in quantized.modules() if isinstance(m, QuantizedExpertLinear)]
    assert len(stacks) == 2 * 2
    assert quantized_bits(quantized) <= bits
    assert_same(quantized, plain)


def test_routers_are_dequantized(folders: dict[str, Path], tmp_path: Path) -> None:
    def pack(name: str, weight: Tensor) -> Packed | None:
        return by_block(name, weight) if name.endswith("classifier") else None

    quantization = DYNAMIC | {"weight_block_size": list(BLOCK)}
    paths = save_pair(partial(copytree, folders[OTHER_EXPERTS]), tmp_path, pack, quantization)
    quantized, plain = map(load, paths)
    assert weight_bytes(quantized) == weight_bytes(plain)
    assert_same(quantized, plain)


def test_what_transformers_must_rearrange_is_dequantized_and_that_is_said(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack, quantization, _ = FORMATS["fp8"]
    paths = save_pair(partial(copytree, folders[OTHER_EXPERTS]), tmp_path, pack, quantization)
    quantized, plain = map(load, paths)
    assert "cannot stay quantized" in caplog.text
    assert "mlp.experts.0.down_proj" in caplog.text
    assert "GiB in place of" in caplog.text
    assert_same(quantized, plain)
    tensors = load_file(paths[0] / "model.safetensors")
    name = next(name for name in tensors if ".experts.0.down_proj.weight_scale_inv" in name)
    tensors[name] = tensors[name][:, :0].clone()
    save_file(tensors, paths[0] / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"{name} is not stored as"):
        load(paths[0])


@pytest.mark.parametrize("architecture", [DENSE, EXPERTS])
@pytest.mark.parametrize(("name", "bits"), [("int8", 9.5), ("int4", 6.5)])
def test_plain_weights_are_quantized_while_they_are_loaded(
    name: str, bits: float, architecture: str, folders: dict[str, Path]
) -> None:
    model, plain = load(folders[architecture], quantization=name), load(folders[architecture])
    assert quantized_bits(model) <= bits
    assert weight_bytes(model) < 0.6 * weight_bytes(plain)
    plain = dequantized(model, plain)
    if name == "int4":
        assert_same(model, plain)
    else:  # inputs are rounded too
        ours, theirs = (generate(model)[0].logits[0] for model in (model, plain))
        assert (ours - theirs).norm() <= 0.05 * theirs.norm()


@pytest.mark.parametrize(
    ("architecture", "names"),
    [(OTHER_EXPERTS, "3 weights are not quantized (model.layers.0.mlp.experts."), (EXPERTS, "")],
)
def test_experts_that_stay_plain_are_named(
    architecture: str, names: str, folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    load(folders[architecture], quantization="int8")
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == bool(names)
    assert names in "".join(said)


def test_a_tensor_of_a_quantized_layer_that_is_missing_is_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pack, quantization, _ = FORMATS["gptq"]
    path, _ = save_pair(partial(copytree, folders[DENSE]), tmp_path, pack, quantization)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.self_attn.o_proj.scales"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"layers\.1\.self_attn\.o_proj\.scales is missing"):
        load(path)


def test_plain_layers_are_those_that_every_model_has(folders: dict[str, Path]) -> None:
    model = load(folders[DENSE])
    assert any(isinstance(module, Linear) for module in model.modules())
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
