"""From a checkpoint to a model on a device.

The model is built on the meta device; the name, shape and number format of every stored tensor
is compared with it; only then is memory taken and each tensor copied to its place, module by
module. How a quantized model differs is the part of `axion.quantization`.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import nn

from axion.engine.checkpoint import Checkpoint, open_checkpoint
from axion.engine.device import resolve_dtype
from axion.engine.expected_tensors import check_stored, destinations, expected_of
from axion.engine.kv_cache import free_memory
from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.models.encoder import Encoder
from axion.models.fallback_layers import some
from axion.models.registry import load_embedding_class, load_model_class
from axion.models.transformers_fallback import TransformersCausalLM
from axion.quantization.method import QuantizationMethod
from axion.quantization.on_load import OnLoad
from axion.quantization.registry import quantization_method
from axion.quantization.stored import FLOATS, StoredTensor

logger = logging.getLogger("axion.engine")

_MAX_NAME_LENGTH = 1024
# Of all weights, what may stay plain without a warning.
_NOTABLE = 0.1

Progress = Callable[[int, int], None]
Placed = MutableMapping[nn.Parameter, nn.Parameter]
ModelT = TypeVar("ModelT", CausalLM, Encoder)


def load_model(
    path: Path,
    *,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    quantization: str = "none",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    on_progress: Progress | None = None,
) -> CausalLM:
    """Load the model at `path`.

    Args:
        dtype: to keep the weights and compute in; see `resolve_dtype`.
        quantization: what plain weights are quantized to; see `quantization_method`.
        allow_pickle: weights in pytorch_model.bin may be loaded.
        trust_remote_code: Python that comes with the model may be run, where neither Axion nor
            transformers has the architecture.
        on_progress: called with (bytes loaded, bytes in all).

    Raises:
        ModelLoadError: the architecture or something in config.json is not supported, or the
            weights are damaged, not exactly what config.json describes, or too large.
    """
    checkpoint = open_checkpoint(path, allow_pickle=allow_pickle)
    config = checkpoint.config
    model_class = load_model_class(config, path if trust_remote_code else None)
    method = quantization_method(config, quantization)
    if issubclass(model_class, TransformersCausalLM):
        computed = resolve_dtype(dtype, config, device)
        return load_fallback(model_class, checkpoint, method, device, computed, on_progress)
    model_config = model_class.config_cls.from_dict(config)
    stored = _rename(checkpoint.tensors, model_class)
    head, embedding = stored.get("lm_head.weight"), stored.get("model.embed_tokens.weight")
    if model_config.tie_word_embeddings and head and embedding:
        # A tied head is often stored again. Where it differs, transformers does not tie either.
        are_plain = {head.dtype, embedding.dtype} <= {*FLOATS}
        if are_plain and torch.equal(head.read(), embedding.read()):
            del stored["lm_head.weight"]
        else:
            logger.warning("lm_head is stored and differs from the embedding: they are not tied")
            model_config.tie_word_embeddings = False
    computed = resolve_dtype(dtype, config, device)
    model = _build(model_class, model_config)
    _load(model, stored, method, device, computed, on_progress)
    return model


def build_model(config: dict[str, Any]) -> CausalLM:
    """The model that a config.json describes, on the meta device: shapes without memory.

    Raises:
        ModelLoadError: the architecture or something in config.json is not supported.
    """
    model_class = load_model_class(config)
    return _build(model_class, model_class.config_cls.from_dict(config))


def load_embedding_model(
    path: Path, *, device: torch.device, dtype: str | torch.dtype = "auto"
) -> CausalLM | Encoder:
    """Load an encoder, or a decoder without its head: it has no `lm_head`.

    Args:
        dtype: as in `load_model`.

    Raises:
        ModelLoadError: as in `load_model`.
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    model_class = load_embedding_class(config)
    method = quantization_method(config)
    model = _build(model_class, model_class.config_cls.from_dict(config))
    stored = _rename(checkpoint.tensors, model_class)
    if isinstance(model, CausalLM):
        del model.lm_head
        for name in [name for name in stored if name.startswith("lm_head.")]:
            del stored[name]
    _load(model, stored, method, device, resolve_dtype(dtype, config, device))
    return model


def load_fallback(
    model_class: type[TransformersCausalLM],
    checkpoint: Checkpoint,
    method: QuantizationMethod,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Progress | None = None,
) -> TransformersCausalLM:
    """Load a model by transformers' class. Arguments and errors are those of `load_model`."""
    model = model_class(checkpoint.config)
    layers = model.divide(checkpoint.tensors, method, dtype)
    stored, sizes = _prepare(layers.modules, layers.stored, method, dtype)
    of_rest = model.num_bytes(dtype)
    total = of_rest + sum(sizes.values())
    peak = of_rest + _peak(layers.modules, sizes, method, device, dtype)
    _check_memory(peak, device, dtype, method)

    def on_rest(done: int, of: int) -> None:
        if on_progress is not None:
            on_progress(of_rest * done // of, total)

    def on_layers(done: int, _: int) -> None:
        if on_progress is not None:
            on_progress(of_rest + done, total)

    if method.name:
        logger.info("Of %.2f GiB of weights %.2f are not quantized", total / 2**30, of_rest / 2**30)
    if isinstance(method, OnLoad):
        _warn_of_plain(model.matrices(), total, dtype)
    model.load(layers.rest, device, dtype, on_rest)
    _fill(layers.modules, stored, sizes, method, device, dtype, on_layers)
    model.finish(layers.modules)
    return model


def _warn_of_plain(matrices: Mapping[str, int], total: int, dtype: torch.dtype) -> None:
    """Say what `QUANTIZATION` leaves as it is, where that is much of the model.

    Args:
        matrices: those that transformers computes with, and the numbers in each.
        total: bytes of all weights.
    """
    num_bytes = sum(matrices.values()) * dtype.itemsize
    if num_bytes > _NOTABLE * total:
        logger.warning(
            "%d weights are not quantized (%s): transformers computes with them by code of the "
            "model's own, in which no layer can be replaced. They take %.2f GiB of %.2f",
            *(len(matrices), some(sorted(matrices, key=lambda name: -matrices[name]))),
            *(num_bytes / 2**30, total / 2**30),
        )


def _rename(
    tensors: Mapping[str, StoredTensor], model_class: type[CausalLM] | type[Encoder]
) -> dict[str, StoredTensor]:
    """What is stored, by the names that the model's own parameters have."""
    stored: dict[str, StoredTensor] = {}
    for tensor in tensors.values():
        name = tensor.name
        if len(name) > _MAX_NAME_LENGTH:  # what is done with names takes n² of their length
            raise ModelLoadError(
                f"{tensor.file} holds a tensor whose name has {len(name)} characters, which no "
                f"real model's has: {name[:80]!r}..."
            )
        for pattern, replacement in model_class.renamed_tensors:
            name = re.sub(pattern, replacement, name)
        if name in stored:
            raise ModelLoadError(
                f"The tensor {name} is stored twice: as {stored[name].name} and as {tensor.name}."
            )
        stored[name] = tensor
    return stored


def _build(model_class: type[ModelT], config: Any) -> ModelT:
    """The model on the meta device: shapes without memory."""
    try:
        with torch.device("meta"):
            return model_class(config)
    except RuntimeError as error:  # more bytes than 64 bits can count
        raise ModelLoadError("config.json describes tensors beyond all measure.") from error


def _load(
    model: CausalLM | Encoder,
    stored: dict[str, StoredTensor],
    method: QuantizationMethod,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Progress | None = None,
) -> None:
    stored, sizes = _prepare(model, stored, method, dtype, model.ignored_tensors)
    _check_memory(_peak(model, sizes, method, device, dtype), device, dtype, method)
    _fill(model, stored, sizes, method, device, dtype, on_progress)
    model.eval()


def _prepare(
    model: nn.Module,
    stored: dict[str, StoredTensor],
    method: QuantizationMethod,
    dtype: torch.dtype,
    ignored_tensors: tuple[str, ...] = (),
) -> tuple[dict[str, StoredTensor], dict[str, int]]:
    """Make the model on the meta device what the method wants, and compare it with what is stored.

    Returns:
        What of that is read, and the bytes that each module will take, by its path.
    """
    ignored = [re.compile(p) for p in (*ignored_tensors, *method.ignored_tensors)]
    stored = {
        name: tensor
        for name, tensor in stored.items()
        if not any(pattern.fullmatch(name) for pattern in ignored)
    }
    method.prepare(model, stored)
    check_stored(stored, expected_of(model, stored))
    return stored, _sizes(model, method, dtype)


def _fill(
    model: nn.Module,
    stored: dict[str, StoredTensor],
    sizes: dict[str, int],
    method: QuantizationMethod,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Progress | None = None,
) -> None:
    """Read the weights, module by module, and put them where they belong.

    Args:
        stored, sizes: as `_prepare` returns them.
    """
    done = 0
    # Weak: of what a quantized module takes the place, nothing stays.
    placed: Placed = WeakValueDictionary()
    modules = dict(model.named_modules())
    for path in sizes:
        module = modules.pop(path)
        _allocate(module, device, dtype, placed)
        _copy(path, module, stored)
        finished = method.finish(module, device, dtype)
        is_replaced = finished is not module
        if is_replaced:
            model.set_submodule(path, finished)
        del module, finished  # what was replaced goes before the next one comes
        if is_replaced:
            _return_free_memory()
        done += sizes[path]
        if on_progress is not None and sizes[path]:
            on_progress(done, sum(sizes.values()))


def _copy(path: str, module: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    for name, place in destinations(path, module, stored):
        if name in stored:  # a tied head is not
            place.copy_(stored[name].read())
    if hasattr(module, "check_tables"):
        module.check_tables(path)


def _return_free_memory() -> None:
    # Between what stays, glibc keeps what is freed, which would add up to the plain model's size.
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _sizes(model: nn.Module, method: QuantizationMethod, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each module, by its path; parameters that are shared count once."""
    sizes: dict[str, int] = {}
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        own = set(module.parameters(recurse=False))
        sizes[path] = method.num_bytes(module, dtype)
        if own and own <= seen:
            sizes[path] = 0
        seen |= own
    return sizes


def _peak(
    model: nn.Module,
    sizes: Mapping[str, int],
    method: QuantizationMethod,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Most bytes that are held while the modules are loaded one after the other."""
    held = peak = 0
    for path, module in model.named_modules():
        held += sizes[path]
        peak = max(peak, held + method.loading_bytes(module, device, dtype))
    return peak


def _check_memory(
    need: int, device: torch.device, dtype: torch.dtype, method: QuantizationMethod
) -> None:
    # Linux promises memory that it does not have, and kills who uses it, without a word.
    free = free_memory(device)
    if need > free:
        kind = method.name or str(dtype).removeprefix("torch.")
        raise ModelLoadError(
            f"The weights need {need / 2**30:.2f} GiB as {kind}, "
            f"and {max(free, 0) / 2**30:.2f} GiB are free on {device}. Free some memory, or "
            "serve a smaller model."
        )


def _allocate(
    module: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    placed: Placed,
) -> None:
    """Give a module's own parameters memory, uninitialised; those that were shared stay shared.

    Buffers keep their own number format.

    Args:
        placed: parameters on the meta device to what took their places.
    """
    for name, parameter in module.named_parameters(recurse=False):
        place = placed.get(parameter)
        if place is None:
            # `empty_like` of what is on the meta device imports half of torch, for half a second.
            empty = torch.empty(parameter.shape, device=device, dtype=dtype)
            place = placed[parameter] = nn.Parameter(empty, requires_grad=False)
        module.register_parameter(name, place)
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_meta:
            empty = torch.empty(buffer.shape, device=device, dtype=buffer.dtype)
            module.register_buffer(name, empty)
        else:
            module.register_buffer(name, buffer.to(device), persistent=False)
