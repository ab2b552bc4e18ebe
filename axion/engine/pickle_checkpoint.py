"""Weights in `pytorch_model.bin`, for those who allow it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axion.errors import ModelLoadError
from axion.hub.config import load_config
from axion.hub.snapshot import FORMATS_WITH_PICKLE, weight_files
from axion.quantization.stored import StoredTensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class PickleCheckpoint:
    """A folder with config.json and pickle files, of which torch's restricted unpickler takes
    tensors and nothing else (`torch.load(weights_only=True)`). Files are mapped, not read, unless
    they are of a torch before 1.6."""

    def __init__(self, path: Path) -> None:
        self.config = load_config(path)
        self.tensors: dict[str, StoredTensor] = {}
        for file in weight_files(path, FORMATS_WITH_PICKLE):
            for name, tensor in _load(file).items():
                if name in self.tensors:
                    raise ModelLoadError(
                        f"The tensor {name} is stored twice: in {self.tensors[name].file} and in "
                        f"{file.name}."
                    )
                dtype = _NAMES.get(tensor.dtype, str(tensor.dtype))
                shape = tuple(tensor.shape)
                self.tensors[name] = StoredTensor(
                    name, file.name, shape, dtype, lambda tensor=tensor: tensor
                )


def _load(file: Path) -> dict[str, Tensor]:
    try:
        file.open("rb").close()
    except OSError as error:
        raise ModelLoadError(f"{file.name} cannot be read: {error.strerror}.") from None
    try:
        content: Any = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except pickle.UnpicklingError:
        raise ModelLoadError(
            f"{file.name} is damaged, or holds more than tensors, which is refused. Use a version "
            "of the model with safetensors."
        ) from None
    except Exception as error:  # torch's errors for damaged files are of many kinds
        raise ModelLoadError(
            f"{file.name} is damaged ({type(error).__name__}). Download the model again."
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ModelLoadError(f"{file.name} holds something else than tensors by name.")
    # A parameter, as some files hold, asks for a gradient.
    return {name: tensor.detach() for name, tensor in content.items()}
