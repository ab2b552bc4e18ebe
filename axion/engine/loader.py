"""From a folder with config.json and safetensors files to a model on a device.

The model is built on the meta device, every tensor's name, shape and dtype is checked against
the files' headers, and only then is memory taken and each tensor read straight into its place.
Nothing in a model's folder is ever executed.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.hub.config import load_config, load_json
from axion.hub.snapshot import weight_files
from axion.layers.linear import PackedLinear
from axion.models.base import CausalLM
from axion.models.registry import load_model_class

logger = logging.getLogger("axion.engine")

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class _StoredTensor:
    file: Path
    shape: tuple[int, ...]
    num_bytes: int


def load_model(
    path: Path,
    *,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> CausalLM:
    """Load the model in the folder `path`.

    Args:
        dtype: of weights and computation; `auto` is the checkpoint's own where the device
            computes it natively, else float32.
        on_progress: called with (bytes read, bytes in all).

    Raises:
        ModelLoadError: the architecture or something in config.json is not supported, or the
            weights are damaged or not exactly what config.json describes.
    """
    config = load_config(path)
    model_class = load_model_class(
        config["architectures"], has_remote_code=config.get("auto_map") is not None
    )
    model_config = model_class.config_cls.from_dict(config)
    stored = _stored_tensors(weight_files(path), model_class.ignored_tensors)
    if model_config.tie_word_embeddings and _HEAD in stored:
        # Old checkpoints store a tied head twice. If the two differ, config.json is wrong.
        if _equal(stored, _EMBEDDING, _HEAD):
            del stored[_HEAD]
        else:
            logger.warning("lm_head and the embedding differ, so they are not tied")
            model_config.tie_word_embeddings = False
    with torch.device("meta"):
        model = model_class(model_config)
    _check(stored, dict(_destinations(model)))
    _allocate(model, device, resolve_dtype(dtype, config, device))
    _read(stored, dict(_destinations(model)), on_progress)
    return model.eval()


def resolve_dtype(
    dtype: str | torch.dtype, config: dict[str, Any], device: torch.device
) -> torch.dtype:
    """The dtype to compute in.

    Args:
        dtype: a name, or `auto`: the checkpoint's own (`dtype` or `torch_dtype` in config.json)
            where the device computes it natively, else float32.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        return _DTYPE_NAMES[dtype]
    own = _DTYPE_NAMES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    return own if _is_native(own, device) else torch.float32


_DTYPE_NAMES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def _is_native(dtype: torch.dtype, device: torch.device) -> bool:
    if dtype == torch.bfloat16:
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True


def eos_token_ids(path: Path) -> tuple[int, ...]:
    """The ids that end a sequence: those of config.json, generation_config.json and tokenizer.

    Raises:
        ModelLoadError: one of these files is damaged.
    """
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (path / name).exists():
            ids = load_json(path / name, _MAX_JSON_BYTES).get("eos_token_id")
            for token_id in ids if isinstance(ids, list) else [ids]:
                if isinstance(token_id, int):
                    found.add(token_id)
    return tuple(sorted(found))


def _stored_tensors(files: list[Path], ignored: tuple[str, ...]) -> dict[str, _StoredTensor]:
    stored: dict[str, _StoredTensor] = {}
    for file in files:
        for name, tensor in _header(file):
            if name in stored:
                raise ModelLoadError(
                    f"The tensor {name[:200]} is stored twice, in {stored[name].file.name} and in "
                    f"{file.name}."
                )
            stored[name] = tensor
    unread = re.compile("|".join(ignored) or "(?!)")
    return {name: tensor for name, tensor in stored.items() if not unread.fullmatch(name)}


def _header(file: Path) -> Iterator[tuple[str, _StoredTensor]]:
    """Names, shapes and sizes, from the front of a safetensors file: 8 bytes of length, then JSON
    (https://huggingface.co/docs/safetensors). Offsets are checked before anything is read."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            header_size = int.from_bytes(stream.read(8), "little")
            if not 2 <= header_size <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            entries = json.loads(stream.read(header_size), object_pairs_hook=_unique)
        data_size = size - 8 - header_size
        for name, entry in entries.items():
            if name != "__metadata__":
                yield name, _stored_tensor(file, name, entry, data_size)
    except OSError as error:
        raise ModelLoadError(f"{file.name} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelLoadError(
            f"{file.name} is damaged: {error}. Download the model again."
        ) from None
