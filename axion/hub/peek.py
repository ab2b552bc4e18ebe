"""What can be known of a model without its weights: config.json and the size of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from axion.hub.resolve import parse_id, resolve
from axion.settings import DEMO_MODEL, is_folder


class Glimpse(NamedTuple):
    """A model that may not be on this machine.

    Attributes:
        path: a folder with config.json, or a GGUF file.
        weight_bytes: of the weights, where these are not in the folder.
        downloaded: config.json has been fetched for this.
    """

    path: Path
    weight_bytes: int | None = None
    downloaded: bool = False


async def peek(model_name: str, *, formats: Collection[str] = ("safetensors",)) -> Glimpse:
    """Look at a model; of one that is not on this machine only config.json is downloaded.

    Raises:
        ModelNotFoundError, ModelLoadError: as `resolve`.
    """
    if model_name == DEMO_MODEL or is_folder(model_name):
        return Glimpse((await resolve(model_name, formats=formats)).path)
    repo_id, revision = parse_id(model_name)
    return await asyncio.to_thread(_peek, repo_id, revision)


def _peek(repo_id: str, revision: str) -> Glimpse:
    # It takes a second to import.
    from huggingface_hub import HfApi, hf_hub_download

    from axion.errors import AxionError
    from axion.hub.download import API_TIMEOUT_S, cached_snapshot, explain
    from axion.hub.snapshot import select_files

    try:
        info = HfApi().model_info(
            repo_id, revision=revision, files_metadata=True, timeout=API_TIMEOUT_S
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        weights = [name for name in select_files(sizes) if name.endswith(".safetensors")]
        config = Path(hf_hub_download(repo_id, "config.json", revision=info.sha))
    except AxionError:
        raise
    except Exception as error:  # httpx's or httpx2's, by the version of huggingface_hub
        cached = cached_snapshot(repo_id, revision)
        if cached is None:
            raise explain(error, repo_id, revision) from error
        return Glimpse(cached)
    return Glimpse(config.parent, sum(sizes[name] for name in weights), downloaded=True)
