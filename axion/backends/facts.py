"""What is known of a model, a device and the engines, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from axion.backends.installed import AskError, ask
from axion.hub.config import brings_code, load_config, quantization_config
from axion.hub.gguf import FLOAT_TYPES, GGUF, is_gguf, read_gguf
from axion.hub.gguf_config import gguf_architecture
from axion.hub.snapshot import FORMATS_WITH_PICKLE, has_only_pickle, weight_files

WeightFormat = Literal["safetensors", "gguf", "pickle"]
DeviceKind = Literal["cpu", "cuda"]


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's files say.

    Attributes:
        architectures: as in config.json; of a GGUF file the same, or its own name for one that
            is not known.
        quantization: `quant_method` of config.json's `quantization_config`, or the type of most of
            a GGUF file's weights; empty for none.
        weight_bytes: of the files.
        num_embedding_weights: numbers in the token embedding; 0 where config.json does not tell.
        head_dim: 0 where config.json does not tell.
        max_length: longest sequence that the model is meant for, in tokens; 0 where that is not
            told.
        has_remote_code: its repository brings a class for it (see `brings_code`).
    """

    name: str
    architectures: tuple[str, ...] = ()
    format: WeightFormat = "safetensors"
    quantization: str = ""
    dtype: str = ""
    weight_bytes: int = 0
    num_embedding_weights: int = 0
    head_dim: int = 0
    max_length: int = 0
    has_remote_code: bool = False


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is to run on.

    Attributes:
        free_bytes, total_bytes: of the device's memory; 0 where nobody could tell.
    """

    kind: DeviceKind = "cpu"
    name: str = ""
    free_bytes: int = 0
    total_bytes: int = 0


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one engine on this machine, and what differs between engines.

    Attributes:
        command: what starts it, and `variable` what may name another; empty for engines that
            need none.
        installed: its command is there.
        problem: why it could not be asked, if it was and could not.
        architectures: those that the engine itself lists; None if it was not asked.
        by_fallback: of these, those that it serves by another library's classes.
        refusals: architectures that it is known not to serve, and why.
        devices: those that it computes on.
        quantizations: the methods by which weights may be quantized; None if any.
        quantizes: what it can quantize plain weights to while it loads them.
        deterministic: a request can get the same bits in whatever batch.
        remote_code: it can run a class that the model's repository brings.
        dtypes: those that it computes with on a device; any, where a device is not named.
        faults: by `architecture` or `architecture/device`: listed by the engine, and known to
            fail.
        memory_factor: by device, memory that it needs as a multiple of the bytes of the weights in
            the format that it computes in.
        head_dims: the head sizes that its attention takes, by device; any, where a device is not
            named.
        tensor_parallel: it can share the layers of a model among several GPUs.
    """

    engine: str
    command: str = ""
    variable: str = ""
    installed: bool = True
    version: str = ""
    problem: str = ""
    architectures: frozenset[str] | None = None
    by_fallback: frozenset[str] = frozenset()
    refusals: Mapping[str, str] = {}
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    formats: frozenset[str] = frozenset({"safetensors"})
    quantizations: frozenset[str] | None = None
    quantizes: frozenset[str] = frozenset()
    deterministic: bool = False
    remote_code: bool = False
    dtypes: Mapping[str, frozenset[str]] = {}
    faults: Mapping[str, str] = {}
    memory_factor: Mapping[str, float] = {}
    head_dims: Mapping[str, frozenset[int]] = {}
    tensor_parallel: bool = False


def model_facts(name: str, path: Path, weight_bytes: int | None = None) -> ModelFacts:
    """What the files at `path`, a snapshot's folder or a GGUF file, say of the model.

    Args:
        weight_bytes: of the weights, where these are not in the folder.

    Raises:
        ModelLoadError: config.json names no architecture; it, or the GGUF file's header, cannot be
            read.
    """
    if is_gguf(path):
        return _gguf_facts(name, read_gguf(path))
    config = load_config(path)
    # A model that takes pictures too has what we are after one level down.
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    quantization = quantization_config(config) or {}
    return ModelFacts(
        name=name,
        architectures=tuple(config["architectures"]),
        format="pickle"
        if has_only_pickle({file.name for file in path.iterdir()})
        else "safetensors",
        quantization=str(quantization.get("quant_method") or ""),
        dtype=str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or ""),
        weight_bytes=sum(file.stat().st_size for file in weight_files(path, FORMATS_WITH_PICKLE))
        if weight_bytes is None
        else weight_bytes,
        num_embedding_weights=_product(text, "vocab_size", "hidden_size"),
        head_dim=_head_dim(text),
        max_length=_max_length(text),
        has_remote_code=brings_code(config),
    )


def _product(config: dict[str, Any], *names: str) -> int:
    sizes: list[Any] = [config.get(name) for name in names]
    return prod(sizes) if all(isinstance(size, int) for size in sizes) else 0


def _gguf_facts(name: str, gguf: GGUF) -> ModelFacts:
    def value(key: str) -> int:
        number = gguf.metadata.get(f"{gguf.architecture}.{key}")
        return number if type(number) is int else 0

    stored = gguf.quantization
    num_heads = value("attention.head_count")  # 0 where each layer has a number of its own
    return ModelFacts(
        name=name,
        architectures=(gguf_architecture(gguf),),
        format="gguf",
        quantization="" if stored in FLOAT_TYPES else stored,
        dtype=_GGUF_DTYPES.get(stored, ""),
        weight_bytes=gguf.num_bytes,
        head_dim=value("attention.key_length")
        or (value("embedding_length") // num_heads if num_heads > 0 else 0),
        max_length=value("context_length"),
    )


_GGUF_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _head_dim(config: dict[str, Any]) -> int:
    if isinstance(config.get("head_dim"), int):
        return int(config["head_dim"])
    hidden_size, num_heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(hidden_size, int) and isinstance(num_heads, int) and num_heads > 0:
        return hidden_size // num_heads
    return 0


def _max_length(config: dict[str, Any]) -> int:
    length = config.get("max_position_embeddings")
    if not isinstance(length, int):
        return 0
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    rope = rope if isinstance(rope, dict) else {}
    factor = rope.get("factor")
    # The other kinds of scaling are within max_position_embeddings already.
    if rope.get("rope_type", rope.get("type")) in ("linear", "dynamic", "yarn") and isinstance(
        factor, int | float
    ):
        original = rope.get("original_max_position_embeddings")
        base = original if isinstance(original, int) else length
        with suppress(OverflowError, ValueError):  # no number that a length could be
            return max(length, int(base * factor))
    return length


async def device_facts(device: str) -> DeviceFacts:
    """What a model runs on when the setting DEVICE is `device`, and what is free there."""
    gpus = [] if device == "cpu" else await _gpus()
    if not gpus:
        kind: DeviceKind = "cuda" if device.startswith("cuda") else "cpu"
        if kind == "cuda":
            return DeviceFacts(kind=kind)
        memory = psutil.virtual_memory()
        return DeviceFacts(
            kind=kind, name="CPU", free_bytes=memory.available, total_bytes=memory.total
        )
    index = int(device.partition(":")[2] or 0)
    name, free, total = gpus[min(index, len(gpus) - 1)]
    return DeviceFacts(kind="cuda", name=name, free_bytes=free, total_bytes=total)


async def _gpus() -> list[tuple[str, int, int]]:
    """Name, free bytes and all bytes of each NVIDIA GPU."""
    query = ("--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits")
    try:
        written = await ask(["nvidia-smi", *query], timeout_s=20)
    except AskError:
        return []
    found = []
    for line in written.decode(errors="replace").splitlines():
        name, *mib = line.rsplit(", ", 2)
        if len(mib) == 2 and all(number.strip().isdigit() for number in mib):
            free, total = (int(number) * 2**20 for number in mib)
            found.append((name, free, total))
    return found
