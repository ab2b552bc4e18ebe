"""Quantized models that also see: their configs name layers as the whole model has them, or did
before it was saved, and list what of it is plain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from axion.quantization.layers import QuantizedLinear
from axion.quantization.patterns import known_as
from tests.parity.checkpoints import save_tiny
from tests.quantization.pairs import Pack, Packed, assert_same, load, save_pair
from tests.quantization.test_auto_round import CONFIG as AUTO_ROUND
from tests.quantization.test_awq import Awq
from tests.quantization.test_bitsandbytes import EightBit, FourBit
from tests.quantization.test_compressed_tensors import config, group, integers
from tests.quantization.test_fp8 import BLOCK, DYNAMIC, by_block, by_tensor
from tests.quantization.test_gptq import Gptq
from tests.quantization.test_nvfp4 import MODELOPT, modelopt

# As transformers saves this one, and as it calls it in memory and saves others.
SAVED, MODERN = "language_model.model.", "model.language_model."
PREFIXES = (SAVED, MODERN, "language_model.")
DOWN = "layers.1.mlp.down_proj"


def seeing(prefix: str) -> Callable[[Path], None]:
    """Saves a tiny model that sees, whose layers are stored under `prefix`."""

    def save(path: Path) -> None:
        save_tiny("gemma3-seeing", path)
        file = path / "model.safetensors"
        tensors = load_file(file)
        save_file({name.replace(SAVED, prefix): t for name, t in tensors.items()}, file)

    return save


def mixed(most: Pack, down: Pack) -> Pack:
    """A pack for one layer of the text model, and one for all others; what sees stays plain."""

    def pack(name: str, weight: Tensor) -> Packed | None:
        if "layers." not in name or "vision" in name:
            return None
        return (down if name.endswith(DOWN) else most)(name, weight)

    return pack


FOUR, EIGHT = Gptq(sym=False), Gptq(bits=8, sym=False)


def named(place: str) -> dict[str, tuple[Pack, dict[str, Any]]]:
    """Methods whose config says of one layer, in that place, that it has eight bits."""
    own = {"bits": 8, "group_size": 32}
    return {
        "gptq": (mixed(FOUR, EIGHT), FOUR.config | {"dynamic": {f"+:^{place}{DOWN}$": own}}),
        "auto-round": (mixed(FOUR, EIGHT), AUTO_ROUND | {"extra_config": {f"{place}{DOWN}": own}}),
        "compressed-tensors": (
            mixed(integers(4, 32), integers(8, 0)),
            config(
                group(4, "group"),
                group(4, "group", targets=(f"{place}layers.0.mlp.down_proj",)),
                group(8, "channel", targets=(f"re:{place}layers.*down_proj",)),
                ignore=["re:.*vision_tower.*", "model.multi_modal_projector", "lm_head"],
            ),
        ),
    }


@pytest.mark.parametrize("stored", [SAVED, MODERN])
@pytest.mark.parametrize("method", ["gptq", "auto-round", "compressed-tensors"])
def test_a_layer_is_found_whatever_the_config_has_before_it(
    method: str, stored: str, tmp_path: Path
) -> None:
    # Each place is another than where it is stored.
    place = PREFIXES[PREFIXES.index(stored) - 1]
    pack, quantization = named(place)[method]
    quantized, plain = map(load, save_pair(seeing(stored), tmp_path, pack, quantization))
    assert_same(quantized, plain)


SKIPPED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


@pytest.mark.parametrize(
    ("pack", "quantization", "stored"),
    [
        (
            Awq(),
            Awq().config | {"modules_to_not_convert": ["vision_tower", f"{SAVED}{DOWN}"]},
            MODERN,
        ),
        (
            by_block,
            DYNAMIC | {"weight_block_size": list(BLOCK), "modules_to_not_convert": SKIPPED},
            SAVED,
        ),
        (
            by_tensor(()),
            {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": SKIPPED},
            SAVED,
        ),
        (modelopt, MODELOPT | {"exclude_modules": ["vision_tower*", f"*{DOWN}"]}, MODERN),
        (FourBit(), FourBit().config | {"llm_int8_skip_modules": SKIPPED}, SAVED),
        (
            EightBit(),
            EightBit.config | {"llm_int8_skip_modules": ["visual", f"{SAVED}{DOWN}"]},
            MODERN,
        ),
    ],
    ids=["awq", "fp8", "modelopt-fp8", "nvfp4", "bnb4", "bnb8"],
)
def test_what_is_stored_plain_is_plain_whatever_it_is_listed_as(
    pack: Pack, quantization: dict[str, Any], stored: str, tmp_path: Path
) -> None:
    packed = mixed(pack, lambda name, weight: None)
    quantized, plain = map(load, save_pair(seeing(stored), tmp_path, packed, quantization))
    layers = quantized.model.layers
    assert isinstance(layers[0].mlp.down_proj, QuantizedLinear)
    assert not isinstance(layers[1].mlp.down_proj, QuantizedLinear)
    assert_same(quantized, plain)


def test_what_sees_may_be_quantized_as_well(tmp_path: Path) -> None:
    paths = save_pair(seeing(SAVED), tmp_path, FourBit(), FourBit().config)
    stored = load_file(paths[0] / "model.safetensors")
    assert [name for name in stored if "vision" in name and name.endswith(".weight.absmax")]
    assert_same(*map(load, paths))


@pytest.mark.parametrize(
    ("stored", "config_has"),
    [
        ("language_model.model.layers.3.mlp.up_proj", "model.language_model.layers.3.mlp.up_proj"),
        ("model.language_model.layers.3.mlp.up_proj", "model.layers.3.mlp.up_proj"),
        ("thinker.model.layers.3.mlp.up_proj", "language_model.layers.3.mlp.up_proj"),
        ("lm_head", "language_model.lm_head"),
    ],
)
def test_a_layer_has_several_names_of_which_the_stored_one_comes_first(
    stored: str, config_has: str
) -> None:
    names = list(known_as(stored))
    assert names[0] == stored
    assert config_has in names
    assert list(known_as("transformer.h.0.attn")) == ["transformer.h.0.attn"]
