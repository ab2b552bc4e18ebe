"""Number formats of what transformers loads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from axion.errors import ModelLoadError
from axion.models.fallback_weights import check_dtypes
from axion.quantization.stored import StoredTensor


def stored(name: str, dtype: str) -> dict[str, StoredTensor]:
    return {name: StoredTensor(name, "model.safetensors", (), dtype, lambda: torch.zeros(()))}


def test_a_counter_is_an_integer_by_its_whole_name_and_without_the_first_part() -> None:
    model = nn.ModuleDict({"model": nn.ModuleDict({"norm": nn.BatchNorm1d(2)})})
    for name in ("model.norm.num_batches_tracked", "norm.num_batches_tracked"):
        check_dtypes(stored(name, "I64"), model)
    for name in ("norm.weight", "batches_tracked"):
        with pytest.raises(ModelLoadError, match="is stored as I64, expected one of"):
            check_dtypes(stored(name, "I64"), model)
