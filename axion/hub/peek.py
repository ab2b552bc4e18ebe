"""What can be known of a model without its weights: config.json and the size of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from axion.hub.resolve import HubName, parse_id, resolve
from axion.hub.snapshot import FORMATS
from axion.settings import DEMO_MODEL, is_folder


class Glimpse(NamedTuple):
    """A model that may not be on this machine.

    Attributes:
        path: a folder with config.json, or a GGUF file.
        weight_bytes: of the weights, where these are not in the folder.
        downloaded: config.json, and an index of the weights, have been fetched for this.
    """

    path: Path
    weight_bytes: int | None = None
    downloaded: bool = False


async def peek(
    model_name: str, *, formats: Collection[str] = FORMATS, folders: Collection[str] = ()
) -> Glimpse:
    """Look at a model; of one that is not on this machine the weights are not downloaded.

    Raises:
        ModelNotFoundError, ModelLoadError: as `resolve`.
    """
    if model_name == DEMO_MODEL or is_folder(model_name):
        return Glimpse((await resolve(model_name, formats=formats, folders=folders)).path)
    return await asyncio.to_thread(_peek, parse_id(model_name), formats)


def _peek(name: HubName, formats: Collection[str]) -> Glimpse:
    repo_id, revision, tag = name
    # It takes a second to import.
    from huggingface_hub import hf_hub_download

    from axion.errors import AxionError
    from axion.hub.download import cached_snapshot, explain, needed_files

    try:
        commit, sizes = needed_files(repo_id, revision, tag=tag, formats=formats)
        files = list(sizes)
        if files[0].endswith(".gguf"):
            return Glimpse(_cached_gguf(repo_id, files, commit))
        config = Path(hf_hub_download(repo_id, "config.json", revision=commit))
    except AxionError:
        raise
    except Exception as error:  # httpx's or httpx2's, by the version of huggingface_hub
        cached = cached_snapshot(repo_id, revision, tag=tag, formats=formats)
        if cached is None:
            raise explain(error, repo_id, revision) from error
        return Glimpse(cached[0])
    weights = [name for name in files if name.endswith((".safetensors", ".bin"))]
    return Glimpse(config.parent, sum(sizes[name] for name in weights), downloaded=True)


def _cached_gguf(repo_id: str, files: list[str], commit: str | None) -> Path:
    from huggingface_hub import try_to_load_from_cache

    from axion.errors import ModelLoadError

    found = [try_to_load_from_cache(repo_id, name, revision=commit) for name in files]
    if not all(isinstance(path, str) for path in found):
        raise ModelLoadError(
            f"{repo_id} holds GGUF files, whose header says what they are, and {files[0]} is not "
            "on this machine. Serve it once, or name a file that is here."
        )
    return Path(str(found[0]))
