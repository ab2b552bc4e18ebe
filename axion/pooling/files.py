"""The files of fastembed's models, from the Hugging Face cache or Hub or from a folder, and how
they are loaded."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from fastembed.common.model_description import BaseModelDescription
from fastembed.common.types import Device
from huggingface_hub import snapshot_download

from axion.errors import ModelLoadError
from axion.hub.download import explain
from axion.types import PoolingConfig

logger = logging.getLogger("axion.pooling")

# Small files that fastembed reads beside the weights, where a repository has them.
_SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
)
_REQUIRED_FILES = ("tokenizer.json", "tokenizer_config.json")

# What a local model is called within fastembed, whatever its clients call it.
LOCAL = "axion/local"


def snapshot(description: BaseModelDescription) -> Path:
    """The folder of a model of fastembed's list; downloaded where the cache lacks it.

    It comes from the cache of huggingface_hub, or from FASTEMBED_CACHE_PATH if that is set.

    Raises:
        ModelNotFoundError: its repository is gone.
        ModelLoadError: it is not in the cache, and cannot be downloaded.
    """
    repo_id = description.sources.hf
    assert repo_id is not None, "fastembed's models are on the Hub"
    weights = [description.model_file, *description.additional_files]
    for local_files_only in (True, False):
        if not local_files_only:
            logger.info("downloading %s, some %.2f GB", repo_id, description.size_in_GB)
        try:
            path = Path(
                snapshot_download(
                    repo_id,
                    allow_patterns=[*_SMALL_FILES, *weights],
                    cache_dir=os.environ.get("FASTEMBED_CACHE_PATH"),
                    local_files_only=local_files_only,
                )
            )
        except Exception as error:  # httpx's or httpx2's, by the version of huggingface_hub
            if not local_files_only:
                raise explain(error, repo_id, "main") from error
            continue
        if all((path / name).is_file() for name in ["tokenizer.json", *weights]):
            return path
    raise ModelLoadError(f"{repo_id} lacks files that fastembed says it has.")


def onnx_file(folder: Path) -> str:
    """The ONNX file of a local model, relative to its folder.

    Raises:
        ModelLoadError: there is none, or a file that fastembed needs beside it is missing.
    """
    for name in _REQUIRED_FILES:
        if not (folder / name).is_file():
            raise ModelLoadError(f"{folder} has no {name}.")
    for name in ("model.onnx", "onnx/model.onnx"):
        if (folder / name).is_file():
            return name
    found = sorted(folder.glob("*.onnx"))
    if len(found) == 1:
        return found[0].name
    raise ModelLoadError(f"{folder} has no model.onnx, no onnx/model.onnx and no safetensors.")


def load_options(config: PoolingConfig) -> dict[str, Any]:
    """What fastembed's models are loaded with; CUDA where onnxruntime was installed with it."""
    _, _, index = config.device.partition(":")
    return {
        "threads": config.num_threads,
        "cuda": Device.CPU if config.device == "cpu" else Device.AUTO,
        "device_ids": [int(index)] if index else None,
    }
