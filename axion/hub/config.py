"""`config.json` and the other small JSON files of a snapshot, read with a bound on their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from axion.errors import ModelLoadError

MAX_CONFIG_BYTES = 4 * 2**20
# What quantizers wrote before it had a place in config.json, and the method that it is of, which
# early ones do not say.
QUANTIZATION_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
# Why a model that brings its own class (see `brings_code`) is not served.
CODE_IS_NOT_RUN = (
    "The model brings its own Python code (auto_map), which is not run unless it is asked for: "
    "TRUST_REMOTE_CODE=true runs its author's code on this machine, with this server's rights."
)
# A mixture of experts lists some 100,000 tensors here: about 10 MB.
MAX_INDEX_BYTES = 64 * 2**20


def load_config(path: Path) -> dict[str, Any]:
    """The `config.json` of the snapshot folder `path`; how the weights are quantized too where that
    is in a file of its own.

    Raises:
        ModelLoadError: the file is missing, over `MAX_CONFIG_BYTES`, not a JSON object, or
            names no architecture.
    """
    config = load_json(path / "config.json", MAX_CONFIG_BYTES)
    architectures = config.get("architectures")
    if (
        not isinstance(architectures, list)
        or not architectures
        or not all(isinstance(name, str) for name in architectures)
    ):
        raise ModelLoadError(
            "config.json names no architecture: expected a list such as "
            '"architectures": ["LlamaForCausalLM"].'
        )
    if quantization_config(config) is None:
        for name, method in QUANTIZATION_FILES.items():
            if (path / name).is_file():
                quantization = load_json(path / name, MAX_CONFIG_BYTES)
                config["quantization_config"] = {"quant_method": method, **quantization}
                break
    return config


def brings_code(config: dict[str, Any]) -> bool:
    """Whether config.json names a class of the repository's own (`auto_map`) for writing text."""
    auto_map = config.get("auto_map")
    return isinstance(auto_map, dict) and bool(auto_map.get("AutoModelForCausalLM"))


def quantization_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """What config.json says of how its weights are quantized, by whichever name and wherever.

    Raises:
        ModelLoadError: it is no object.
    """
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        for name in ("quantization_config", "compression_config"):
            value = place.get(name)
            if value is not None and not isinstance(value, dict):
                raise ModelLoadError(f"config.json: {name} must be an object, got {value!r:.80}.")
            if value:  # DeepSeek-V4 says beside it how its experts are stored
                beside = {key: place[key] for key in ("expert_dtype",) if key in place}
                return beside | value
    return None


def load_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """A JSON object from a file of at most `max_bytes`.

    Raises:
        ModelLoadError: names the file, without its folder, and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ModelLoadError(f"The model has no {path.name}.") from None
    except OSError as error:
        raise ModelLoadError(f"{path.name} cannot be read: {error.strerror}.") from None
    if len(data) > max_bytes:
        raise ModelLoadError(
            f"{path.name} is larger than {max_bytes // 2**20} MiB, which no real model's is."
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path.name} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path.name} must hold a JSON object, got {type(value).__name__}.")
    return value
