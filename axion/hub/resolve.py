"""From the name of a model to a folder on this machine."""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import msgspec

from axion.errors import AxionError, ModelLoadError, ModelNotFoundError
from axion.hub.gguf import shard_paths
from axion.hub.messages import Downloaded, Failed, FromCache, Message, Progress
from axion.hub.snapshot import FORMATS, Snapshot, check_snapshot, choose_gguf, has_only_gguf
from axion.settings import DEMO_MODEL, is_folder

MAX_NAME_LENGTH = 1024
DEFAULT_REVISION = "main"
DEMO_HINT = f"To try Axion without a download, use the bundled model: MODEL_NAME={DEMO_MODEL}."

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]{0,199}", re.ASCII)
_TAG = re.compile(r"\w[\w./ -]{0,199}", re.ASCII)

logger = logging.getLogger("axion.hub")

ProgressCallback = Callable[[int, int], None]


async def resolve(
    model_name: str,
    *,
    on_progress: ProgressCallback | None = None,
    formats: Collection[str] = FORMATS,
    folders: Collection[str] = (),
) -> Snapshot:
    """Find the model's files, downloading them where they are not on this machine.

    Args:
        model_name: `axion/demo`; a folder (absolute, `./x` or `~/x`); or a Hugging Face id,
            `org/name` or `org/name@revision`; or a GGUF file: its path, or behind the id and a
            colon its quantization or name, `org/name:Q4_K_M`.
        on_progress: called with bytes downloaded and bytes to download.
        formats: of weights that can be used; with `python` the repository's own code comes too.
        folders: that a local model must lie in, if there are any.

    Raises:
        ModelNotFoundError: there is no such folder, repository or revision, or the name is none.
        ModelLoadError: the model is there, but its files cannot be had or used; says why.
    """
    try:
        _check_name(model_name)
        if model_name == DEMO_MODEL:
            return _demo()
        if is_folder(model_name):
            require_allowed(model_name, folders)
            return _local(model_name, formats)
        return await _hub(model_name, formats, on_progress or (lambda *_: None))
    except AxionError as error:
        if model_name == DEMO_MODEL:
            raise
        raise type(error)(f"{error.message} {DEMO_HINT}") from error


def _check_name(name: str) -> None:
    """What no name of a model holds, refused before disk or network see it."""
    shown = repr(name[:80])
    if not name or len(name) > MAX_NAME_LENGTH:
        raise ModelNotFoundError(
            f"A model's name has 1 to {MAX_NAME_LENGTH} characters, got {len(name)}."
        )
    if not name.isprintable():
        raise ModelNotFoundError(f"The model's name holds control characters: {shown}.")
    if ".." in name.split("/"):
        raise ModelNotFoundError(
            f"The model's name holds '..': {shown}. Write the folder's path without it."
        )


def require_allowed(name: str, folders: Collection[str]) -> None:
    """Refuse the path `name` if there are `folders` and it lies in none of them, links followed.

    Raises:
        ModelNotFoundError: it lies elsewhere.
    """
    try:
        path = Path(name).expanduser().resolve()
        allowed = not folders or any(
            path.is_relative_to(Path(folder).expanduser().resolve()) for folder in folders
        )
    except (OSError, RuntimeError):  # a loop of links, or a home that is not there
        allowed = False
    if not allowed:
        raise ModelNotFoundError(
            f"{name[:200]!r} is not in a folder that ALLOWED_MODEL_FOLDERS names."
        )


def _demo() -> Snapshot:
    path = Path(str(importlib.resources.files("axion") / "demo" / "model"))
    if not path.is_dir():
        raise ModelLoadError(
            "This installation lacks the bundled model. `python -m axion.demo.train` makes it."
        )
    check_snapshot(path)
    return Snapshot(name=DEMO_MODEL, path=path, revision=None, source="demo")


def _local(name: str, formats: Collection[str]) -> Snapshot:
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise ModelNotFoundError(f"There is no home folder for {name!r}.") from None
    try:
        if path.is_dir() and "gguf" in formats:
            names = [file.name for file in path.iterdir()]
            if has_only_gguf(names):
                path /= choose_gguf(names)[0]
        if path.suffix == ".gguf" and path.is_file():
            if "gguf" not in formats:
                raise ModelLoadError(
                    f"{name} is a GGUF file, which none of the engines in use loads. The engines "
                    "native and llama_cpp do: name one in AXION_BACKENDS."
                )
            # Of one that is split any part may be named.
            path = shard_paths(path)[0]
            # What a link in the cache of huggingface_hub leads to has another name.
            return Snapshot(name=name, path=path.absolute(), revision=None, source="local")
        if not path.is_dir():
            kind = "is not a folder" if path.exists() else "does not exist"
            noun = "file" if path.suffix == ".gguf" else "folder"
            raise ModelNotFoundError(f"The model {noun} {name} {kind}.")
        check_snapshot(path, formats)
    except OSError as error:
        raise ModelLoadError(f"{name} cannot be read: {error.strerror}.") from None
    except ModelLoadError as error:
        raise ModelLoadError(f"{name} cannot be served. {error.message}") from None
    return Snapshot(name=name, path=path.resolve(), revision=None, source="local")


def _hint_at_local(name: str) -> str:
    """What is here under a name that was not written as a path; empty where nothing is."""
    if os.path.isdir(name):
        return f" The folder here is ./{name}."
    if name.endswith(".gguf") and os.path.isfile(name):
        return f" The file here is ./{name}."
    return ""


class HubName(NamedTuple):
    """A model on Hugging Face.

    Attributes:
        tag: which of its GGUF files; empty where none is named.
    """

    repo_id: str
    revision: str
    tag: str


def parse_id(name: str) -> HubName:
    """The parts of `org/name`, `org/name@revision`, `org/name:tag` or `org/name@revision:tag`.

    Raises:
        ModelNotFoundError: it is none of these.
    """
    rest, colon, tag = name.partition(":")
    repo_id, at, revision = rest.partition("@")
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise ModelNotFoundError(
            f"{name[:80]!r} is not a model's name. Expected a Hugging Face id such as "
            "meta-llama/Llama-3.2-3B-Instruct, or a folder or GGUF file: absolute, ./x or ~/x."
            + _hint_at_local(name)
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise ModelNotFoundError(
            f"{revision[:80]!r} is not a revision. Expected a branch, a tag or a commit."
        )
    if colon and not _TAG.fullmatch(tag):
        raise ModelNotFoundError(
            f"{tag[:80]!r} names no GGUF file. Expected a quantization such as Q4_K_M, or a file."
        )
    return HubName(repo_id, revision or DEFAULT_REVISION, tag)


async def _hub(name: str, formats: Collection[str], on_progress: ProgressCallback) -> Snapshot:
    repo_id, revision, tag = parse_id(name)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "axion.hub.download", repo_id, revision, tag, ",".join(sorted(formats))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            match msgspec.json.decode(line, type=Message):
                case Progress(done, total):
                    on_progress(done, total)
                case FromCache(reason):
                    logger.warning("%s is served from the local cache: %s", repo_id, reason)
                case Downloaded(path, commit):
                    return Snapshot(name=name, path=Path(path), revision=commit, source="hub")
                case Failed(message, not_found):
                    if repo_id not in message:
                        message = f"{repo_id} cannot be served. {message}"
                    message += _hint_at_local(name)
                    raise (ModelNotFoundError if not_found else ModelLoadError)(message)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    raise ModelLoadError(
        f"The download of {repo_id} ended unexpectedly (exit status {process.returncode})."
    )
