"""AutoRound's own config, over what GPTQ and AWQ store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from axion.errors import ModelLoadError
from axion.quantization.auto_round import AutoRoundMethod
from tests.quantization.pairs import Packed, assert_same, load, save_pair
from tests.quantization.test_awq import Awq
from tests.quantization.test_fp8 import BLOCK, by_block, by_output
from tests.quantization.test_gptq import Gptq
from tests.quantization.test_nvfp4 import llm_compressor as nvfp4
from tests.quantization.test_nvfp4 import mxfp4

CONFIG = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 32,
    "sym": False,
    "data_type": "int",
    "block_name_to_quantize": "model.layers",
    "autoround_version": "0.9.0",
}


def wide_heads(name: str, weight: Tensor) -> Packed | None:
    """What is not to be found in the first layer, and has eight bits in `k_proj`."""
    if "layers.0.mlp" in name:
        return None
    gptq = Gptq(bits=8 if name.endswith("k_proj") else 4, sym=False)
    return gptq(name, weight)


@pytest.mark.parametrize(
    ("pack", "fields"),
    [
        (Gptq(sym=False), {"packing_format": "auto_round:auto_gptq"}),
        (Awq(), {"packing_format": "auto_round:auto_awq"}),
        (
            Gptq(sym=False, checkpoint_format="gptq_v2", has_groups=False),
            {"packing_format": "auto_round:gptqmodel"},
        ),
        (by_output, {"packing_format": "auto_round:fp8_static", "data_type": "fp", "bits": 8}),
        (by_block, {"data_type": "fp", "bits": 8, "group_size": list(BLOCK), "fmt": "e4m3"}),
        (mxfp4, {"packing_format": "auto_round:llm_compressor", "data_type": "mx_fp"}),
        (nvfp4, {"packing_format": "auto_round:llm_compressor", "data_type": "nv_fp4"}),
        (
            wide_heads,
            {
                "extra_config": {
                    r"self_attn\.k_proj": {"bits": 8, "group_size": 32},
                    "model.layers.0.mlp.up_proj": {"bits": 16, "data_type": "fp"},
                }
            },
        ),
    ],
    ids=["gptq", "awq", "gptq_v2", "fp8", "fp8 blocks", "mxfp4", "nvfp4", "layers"],
)
def test_it_is_read_as_what_it_is_packed_as(
    pack: Any, fields: dict[str, Any], tmp_path: Path
) -> None:
    assert_same(*map(load, save_pair("llama", tmp_path, pack, CONFIG | fields)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"packing_format": "auto_round", "data_type": "mx_int"},
            "'mx_int' packed as 'auto_round'",
        ),
        ({"packing_format": "auto_round:fake"}, "packed as 'auto_round:fake'"),
        ({"data_type": "fp", "fmt": "e5m2"}, "with fmt='e5m2'"),
        ({"extra_config": ["lm_head"]}, "extra_config must map"),
        ({"bits": 5}, "bits 5"),
        (
            {"packing_format": "auto_round:auto_awq", "extra_config": {"lm_head": {"bits": 8}}},
            "bits or groups of their own",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        AutoRoundMethod(CONFIG | fields)
    assert message in caught.value.message
