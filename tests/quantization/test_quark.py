"""What AMD's Quark stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from axion.errors import ModelLoadError
from axion.quantization.float8 import Float8Kernel
from axion.quantization.mxfp4 import Mxfp4Kernel
from tests.quantization.pairs import assert_same, load, save_pair
from tests.quantization.test_compressed_tensors import integers
from tests.quantization.test_fp8 import by_tensor
from tests.quantization.test_nvfp4 import modelopt_mxfp4

CONFIG = {
    "quant_method": "quark",
    "exclude": ["lm_head"],
    "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
    "export": {"kv_cache_group": [], "pack_method": "reorder", "weight_format": "real_quantized"},
}


@pytest.mark.parametrize(
    ("case", "pack", "kernel"),
    [("llama", by_tensor(()), Float8Kernel), ("mixtral", modelopt_mxfp4, Mxfp4Kernel)],
    ids=["fp8", "mxfp4"],
)
def test_the_answers_are_those_of_the_dequantized_model(
    case: str, pack: Any, kernel: type, tmp_path: Path
) -> None:
    quantized, plain = map(load, save_pair(case, tmp_path, pack, CONFIG))
    assert any(isinstance(module, kernel) for module in quantized.modules())
    assert_same(quantized, plain)


def test_integers_are_refused_by_name(tmp_path: Path) -> None:
    path, _ = save_pair("llama", tmp_path, integers(8, 0, packed=False), CONFIG)
    with pytest.raises(ModelLoadError, match=r"layers\.0\..* by Quark as I8, with scales as F32"):
        load(path)
