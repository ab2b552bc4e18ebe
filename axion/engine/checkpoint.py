"""What a model's files hold, by the names that Hugging Face's own checkpoints have."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open

from axion.errors import ModelLoadError
from axion.hub.config import load_config
from axion.hub.gguf import is_gguf
from axion.hub.snapshot import has_only_pickle, weight_files
from axion.quantization.stored import StoredTensor


class Checkpoint(Protocol):
    """A model as it is stored.

    Attributes:
        config: what config.json says, or would say.
        tensors: by name, in the order in which they are read fastest.
    """

    config: dict[str, Any]
    tensors: dict[str, StoredTensor]


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint at `path`. Nothing that these files hold is executed.

    Args:
        allow_pickle: weights in pytorch_model.bin may be loaded.

    Raises:
        ModelLoadError: files are missing, damaged or contradict each other.
    """
    if is_gguf(path):
        # Only such a model needs it, and it takes a while to import.
        from axion.engine.gguf import GGUFCheckpoint

        return GGUFCheckpoint(path)
    if allow_pickle and has_only_pickle({file.name for file in path.iterdir()}):
        from axion.engine.pickle_checkpoint import PickleCheckpoint

        return PickleCheckpoint(path)
    return SafetensorsCheckpoint(path)


class SafetensorsCheckpoint:
    """A folder with config.json and safetensors files, which are mapped, not read."""

    def __init__(self, path: Path) -> None:
        self.config = load_config(path)
        self.tensors: dict[str, StoredTensor] = {}
        for file in weight_files(path):
            for tensor in _read_header(file):
                if (other := self.tensors.get(tensor.name)) is not None:
                    raise ModelLoadError(
                        f"The tensor {tensor.name} is stored twice: in {other.file} and in "
                        f"{file.name}."
                    )
                self.tensors[tensor.name] = tensor


def _read_header(file: Path) -> list[StoredTensor]:
    try:
        # Refuses sizes and offsets that do not fit the file, and each other.
        tensors = safe_open(file, framework="pt")
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        stored = [
            StoredTensor(
                name,
                file.name,
                tuple(entry.get_shape()),
                entry.get_dtype(),
                partial(tensors.get_tensor, name),
            )
            for name, entry in slices.items()
        ]
        # Of two tensors with one name it takes the last; which is meant nobody knows.
        with file.open("rb") as stream:
            header = stream.read(int.from_bytes(stream.read(8), "little"))
        json.loads(header, object_pairs_hook=_refuse_duplicates)
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ModelLoadError(
            f"{file.name} is damaged ({reason}). Download the model again."
        ) from None
    except OSError as error:
        raise ModelLoadError(f"{file.name} cannot be read: {error.strerror}.") from None
    except _DuplicateNameError as error:
        raise ModelLoadError(f"{file.name} holds two tensors named {error}.") from None
    return stored


class _DuplicateNameError(Exception):
    pass


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise _DuplicateNameError(name)
        names.add(name)
