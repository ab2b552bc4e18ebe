"""From a folder with config.json and safetensors files to a model on a device.

The model is built on the meta device; the name, shape and number format of every stored tensor
is compared with it; only then is memory taken and each tensor copied to its place from the
mapped file. Nothing that a model's folder holds is ever executed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from axion.engine.kv_cache import free_memory
from axion.errors import ModelLoadError
from axion.hub.config import MAX_CONFIG_BYTES, load_config, load_json
from axion.hub.snapshot import weight_files
from axion.layers.linear import PackedLinear
from axion.layers.moe import ExpertLinear
from axion.models.base import CausalLM
from axion.models.encoder import Encoder
from axion.models.registry import load_embedding_class, load_model_class

logger = logging.getLogger("axion.engine")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED_DTYPES = ("F64", "F32", "F16", "BF16")
_MAX_TOKENIZER_BYTES = 256 * 2**20

Progress = Callable[[int, int], None]
ModelT = TypeVar("ModelT", CausalLM, Encoder)


def load_model(
    path: Path,
    *,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    on_progress: Progress | None = None,
) -> CausalLM:
    """Load the model in the folder `path`.

    Args:
        dtype: to keep the weights and compute in; see `resolve_dtype`.
        on_progress: called with (bytes read, bytes in all).

    Raises:
        ModelLoadError: the architecture or something in config.json is not supported, or the
            weights are damaged, not exactly what config.json describes, or too large.
    """
    config = load_config(path)
    model_class = load_model_class(
        config["architectures"], has_remote_code=config.get("auto_map") is not None
    )
    model_config = model_class.config_cls.from_dict(config)
    stored = _stored_tensors(weight_files(path), model_class)
    head, embedding = stored.get("lm_head.weight"), stored.get("model.embed_tokens.weight")
    if model_config.tie_word_embeddings and head and embedding:
        # A tied head is often stored again. Where it differs, transformers does not tie either.
        if torch.equal(head.read(), embedding.read()):
            del stored["lm_head.weight"]
        else:
            logger.warning("lm_head is stored and differs from the embedding: they are not tied")
            model_config.tie_word_embeddings = False
    model = _build(model_class, model_config)
    _fill(model, stored, device, resolve_dtype(dtype, config, device), on_progress)
    return model


def load_embedding_model(
    path: Path, *, device: torch.device, dtype: str | torch.dtype = "auto"
) -> CausalLM | Encoder:
    """Load an encoder, or a decoder without its head: it has no `lm_head`.

    Args:
        dtype: as in `load_model`.

    Raises:
        ModelLoadError: as in `load_model`.
    """
    config = load_config(path)
    model_class = load_embedding_class(
        config["architectures"], has_remote_code=config.get("auto_map") is not None
    )
    model = _build(model_class, model_class.config_cls.from_dict(config))
    stored = _stored_tensors(weight_files(path), model_class)
    if isinstance(model, CausalLM):
        del model.lm_head
        for name in [name for name in stored if name.startswith("lm_head.")]:
            del stored[name]
    _fill(model, stored, device, resolve_dtype(dtype, config, device))
    return model


def _build(model_class: type[ModelT], config: Any) -> ModelT:
    """The model on the meta device: shapes without memory."""
    try:
        with torch.device("meta"):
            return model_class(config)
    except RuntimeError as error:  # more bytes than 64 bits can count
        raise ModelLoadError("config.json describes tensors beyond all measure.") from error


def _fill(
    model: CausalLM | Encoder,
    stored: dict[str, _StoredTensor],
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Progress | None = None,
) -> None:
    stored = {
        name: tensor
        for name, tensor in stored.items()
        if not any(re.fullmatch(pattern, name) for pattern in model.ignored_tensors)
    }
    _check(stored, dict(_destinations(model, stored)))
    _check_memory(model, device, dtype)
    _allocate(model, device, dtype)
    _copy(stored, dict(_destinations(model, stored)), on_progress)
    model.eval()


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else CPU.

    Raises:
        ModelLoadError: the device that was asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            f"DEVICE={name} was asked for, and torch sees no CUDA device here. "
            "Use DEVICE=cpu or DEVICE=auto, or install a CUDA build of torch."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"DEVICE={name} was asked for, and there are {torch.cuda.device_count()} CUDA devices."
        )
    return device


def resolve_dtype(
    dtype: str | torch.dtype, config: dict[str, Any], device: torch.device
) -> torch.dtype:
    """The number format to compute in.

    Args:
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: the checkpoint's own (`dtype` or
            `torch_dtype` in config.json) where the device computes it natively, else float32.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        return _DTYPES[dtype]
    own = _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    return own if own == torch.float32 or _is_native(own, device) else torch.float32


def _is_native(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def eos_token_ids(path: Path) -> tuple[int, ...]:
    """Ids that end a sequence: of config.json, generation_config.json and tokenizer together.

    Raises:
        ModelLoadError: one of these files is damaged.
    """
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        ids = _load_if_there(path / name, MAX_CONFIG_BYTES).get("eos_token_id")
        found.update(id for id in (ids if isinstance(ids, list) else [ids]) if type(id) is int)
    token = _load_if_there(path / "tokenizer_config.json", MAX_CONFIG_BYTES).get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if token is not None:
        tokenizer = _load_if_there(path / "tokenizer.json", _MAX_TOKENIZER_BYTES)
        found |= {
            added["id"]
            for added in tokenizer.get("added_tokens", [])
            if added.get("content") == token
        }
    return tuple(sorted(found))


def _load_if_there(path: Path, max_bytes: int) -> dict[str, Any]:
    return load_json(path, max_bytes) if path.exists() else {}


@dataclass(frozen=True, slots=True)
class _StoredTensor:
    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        with safe_open(self.file, framework="pt") as tensors:
            return tensors.get_tensor(self.name)


def _stored_tensors(
    files: Iterable[Path], model_class: type[CausalLM] | type[Encoder]
) -> dict[str, _StoredTensor]:
    """What is stored, by the names that the model's own parameters have."""
    stored: dict[str, _StoredTensor] = {}
    for file in files:
        for tensor in _read_header(file):
            name = tensor.name
            for pattern, replacement in model_class.renamed_tensors:
                name = re.sub(pattern, replacement, name)
            if name in stored:
                raise ModelLoadError(
                    f"The tensor {name} is stored twice: in {stored[name].file.name} and in "
                    f"{file.name}."
                )
            stored[name] = tensor
    return stored


def _read_header(file: Path) -> list[_StoredTensor]:
    try:
        # Refuses sizes and offsets that do not fit the file, and each other.
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            stored = [
                _StoredTensor(name, file, tuple(entry.get_shape()), entry.get_dtype())
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


def _destinations(model: nn.Module, stored: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a checkpoint of `model` must hold, and where it goes.

    What is packed in the model may be stored apart, as is expected, or packed.
    """
    seen: set[Tensor] = set()
    for path, module in model.named_modules():
        own = {f"{path}.{name}": tensor for name, tensor in _stored_part(module)}
        if isinstance(module, PackedLinear | ExpertLinear) and own.keys().isdisjoint(stored):
            parent = path.rpartition(".")[0]
            yield from ((f"{parent}.{name}", view) for name, view in module.shard_views().items())
            continue
        for name, tensor in own.items():
            if tensor not in seen:  # a tied head is its embedding
                seen.add(tensor)
                yield name, tensor


def _stored_part(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own parameters, and its buffers that are not computed from config.json."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def _check(stored: dict[str, _StoredTensor], expected: dict[str, Tensor]) -> None:
    faults = [f"{name} is missing" for name in expected if name not in stored]
    for name, tensor in stored.items():
        if name not in expected:
            faults.append(f"{name[:200]!r} {list(tensor.shape)} is not part of the architecture")
        elif tensor.shape != tuple(expected[name].shape):
            faults.append(
                f"{name} has shape {list(tensor.shape)}, expected {list(expected[name].shape)}"
            )
        elif tensor.dtype not in _STORED_DTYPES:
            faults.append(
                f"{name} is stored as {tensor.dtype}, expected one of {', '.join(_STORED_DTYPES)}"
            )
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ModelLoadError(
            f"The weights are not what config.json describes: {'; '.join(faults[:5])}{more}."
        )


def _check_memory(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    # Linux promises memory that it does not have, and kills who uses it, without a word.
    need = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    free = free_memory(device)
    if need > free:
        raise ModelLoadError(
            f"The weights need {need / 2**30:.2f} GiB as {str(dtype).removeprefix('torch.')}, "
            f"and {max(free, 0) / 2**30:.2f} GiB are free on {device}. Free some memory, or "
            "serve a smaller model."
        )


def _allocate(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter memory, uninitialised, and keep those that are shared shared.

    Buffers keep their own number format.
    """
    placed: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in placed:
                empty = torch.empty_like(parameter, device=device, dtype=dtype)
                placed[parameter] = nn.Parameter(empty, requires_grad=False)
            module.register_parameter(name, placed[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(name, torch.empty_like(buffer, device=device))
            else:
                module.register_buffer(name, buffer.to(device), persistent=False)


def _copy(
    stored: dict[str, _StoredTensor], places: dict[str, Tensor], on_progress: Progress | None
) -> None:
    by_file: dict[Path, dict[str, str]] = {}
    for name, tensor in stored.items():
        by_file.setdefault(tensor.file, {})[name] = tensor.name
    total = sum(place.nbytes for place in places.values())
    done = 0
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as tensors:
            for name, stored_name in names.items():
                places[name].copy_(tensors.get_tensor(stored_name))
                done += places[name].nbytes
                if on_progress is not None:
                    on_progress(done, total)
