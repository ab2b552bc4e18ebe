from __future__ import annotations

from typing import Any

import pytest
import torch

from axion.engine.device import resolve_dtype, take_threads

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


@pytest.mark.parametrize(
    ("wanted", "quota", "expected"),
    [(None, None, 3), (None, 64.0, 3), (None, 2.5, 2), (None, 0.5, 1), (5, 2.5, 5)],
)
def test_there_are_no_more_threads_than_a_container_may_have_the_time_of(
    wanted: int | None, quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axion.engine.device.num_processors", lambda: quota)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        take_threads(wanted)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
