from __future__ import annotations

from typing import Any

import pytest
import torch

from axion.engine.device import resolve_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({}, torch.float32),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"dtype": "float64"}, torch.float32),
    ],
)
def test_auto_dtype_without_a_half_precision_checkpoint_is_float32(
    config: dict[str, Any], dtype: torch.dtype
) -> None:
    assert resolve_dtype("auto", config, CPU) == dtype


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("native", [True, False])
def test_auto_dtype_is_the_checkpoint_s_own_where_it_is_native(
    field: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axion.engine.device._is_native", lambda dtype, device: native)
    expected = torch.bfloat16 if native else torch.float32
    assert resolve_dtype("auto", {field: "bfloat16"}, CPU) == expected
