"""The files of a pooling model: from the Hugging Face cache or Hub, or from a folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
from fastembed.common.model_description import BaseModelDescription, PoolingType
from huggingface_hub import snapshot_download

from axion.errors import ModelLoadError
from axion.hub.download import explain

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

_POOLING = {
    "cls": PoolingType.CLS,
    "mean": PoolingType.MEAN,
    "lasttoken": PoolingType.LAST_TOKEN,
}


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
    raise ModelLoadError(f"{folder} has no model.onnx and no onnx/model.onnx.")


class _PoolingFile(msgspec.Struct):
    """`1_Pooling/config.json` of sentence-transformers: a name, or in older files one flag each."""

    pooling_mode: str | None = None
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False


def pooling_type(folder: Path) -> PoolingType:
    """How the vectors of a local model's tokens become one; mean where its folder does not say.

    Raises:
        ModelLoadError: in a way that is not supported.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return PoolingType.MEAN
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_PoolingFile)
    except msgspec.DecodeError as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from None
    flags = msgspec.structs.asdict(config)
    modes = [
        name.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for name, value in flags.items()
        if value is True
    ]
    if config.pooling_mode is not None:
        modes = [config.pooling_mode]
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise ModelLoadError(
            f"{path} asks for {' and '.join(modes) or 'no'} pooling; supported are "
            f"{', '.join(_POOLING)}, one at a time."
        )
    return _POOLING[modes[0]]
