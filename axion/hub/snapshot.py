"""What a model folder must hold, and which of a repository's files are worth downloading."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from axion.errors import ModelLoadError
from axion.hub.config import MAX_INDEX_BYTES, load_json
from axion.hub.gguf import is_gguf, shard_names, shard_paths

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"

PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"

# Of weights, those that the native engine loads; and with what is loaded only if it is allowed.
FORMATS = frozenset({"safetensors", "gguf"})
FORMATS_WITH_PICKLE = FORMATS | {"pickle"}
# Beside formats of weights: the repository's own code is wanted too.
PYTHON = "python"
# Of a repository's GGUF files, the one that is taken where none is named.
_USUAL_GGUF = "Q4_K_M"

_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
# A module of sentence-transformers: how an embedding model pools.
_MODULE_CONFIG = re.compile(r"\d+_\w+/config\.json", re.ASCII)
_TEMPLATE_FOLDERS = ("chat_templates", "additional_chat_templates")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_PICKLE_FILE = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin", re.ASCII)
_TOKENIZER_SUFFIXES = (".model", ".tiktoken", "merges.txt")  # beside those in JSON
# Files that are not weights, as patterns.
SMALL_FILES = ["*.json", "*.jinja", *(f"*{suffix}" for suffix in _TOKENIZER_SUFFIXES)]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A model's files on this machine.

    Attributes:
        name: as it was asked for.
        path: folder with config.json, tokenizer and safetensors, or a GGUF file.
        revision: commit of a Hugging Face repository.
    """

    name: str
    path: Path
    revision: str | None
    source: Literal["demo", "local", "hub"]


def native_formats(*, allow_pickle: bool, trust_remote_code: bool) -> frozenset[str]:
    """What the native engine takes of a repository."""
    formats = FORMATS_WITH_PICKLE if allow_pickle else FORMATS
    return formats | {PYTHON} if trust_remote_code else formats


def weight_files(path: Path, formats: Collection[str] = FORMATS) -> list[Path]:
    """The files with the weights of the snapshot folder `path`, in a stable order.

    The index decides where there is one, unless there is a `model.safetensors` that it does not
    name: that has replaced what it does, as for transformers. Without an index it is
    `model.safetensors`, or every safetensors file of the folder but Mistral's `consolidated` copies
    of the same weights. Pickle files are taken where `formats` has `pickle` and there are no
    others.

    Raises:
        ModelLoadError: there are none, a file that the index names is missing, or the index
            names something outside the folder.
    """
    names = {file.name for file in path.iterdir()}
    if INDEX_FILE in names:
        return _existing(path, weights_by_index(path, names))
    if "pickle" in formats and has_only_pickle(names):
        if PICKLE_INDEX_FILE in names:
            return _existing(path, _indexed_names(path, PICKLE_INDEX_FILE, ".bin"))
        return [path / name for name in sorted(filter(_PICKLE_FILE.fullmatch, names))]
    refuse_other_formats(names)
    return [path / name for name in sorted(_choose_weights(names))]


def weights_by_index(path: Path, names: Collection[str]) -> list[str]:
    """The weight files that are loaded by the index in the folder `path`.

    Args:
        names: of the snapshot's files.

    Raises:
        ModelLoadError: the index names something outside the folder, or nothing.
    """
    indexed = _indexed_names(path, INDEX_FILE, ".safetensors")
    is_replaced = WEIGHTS_FILE in names and WEIGHTS_FILE not in indexed
    return [WEIGHTS_FILE] if is_replaced else indexed


def _indexed_names(path: Path, index: str, suffix: str) -> list[str]:
    weight_map = load_json(path / index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f'{index} has no "weight_map" from tensor names to files.')
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not name.endswith(suffix) or not is_safe_name(name) or "/" in name:
            raise ModelLoadError(f"{index} names {name[:80]!r}, not a {suffix[1:]} file.")
    return names


def _existing(path: Path, names: list[str]) -> list[Path]:
    files = [path / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelLoadError(
            f"{len(missing)} of {len(files)} weight files are missing, "
            f"{missing[0]} among them. Download the model again."
        )
    return files


def check_snapshot(path: Path, formats: Collection[str] = FORMATS) -> None:
    """Raises: ModelLoadError: config.json or weights are missing; says which."""
    weight_files(path, formats)
    if not (path / "config.json").is_file():
        raise ModelLoadError("The model has no config.json.")


def fingerprint(path: Path) -> str:
    """Digest of the names, sizes and times of change of a model's files."""
    digest = hashlib.blake2b(digest_size=16)
    for file in shard_paths(path) if is_gguf(path) else sorted(path.rglob("*")):
        if file.is_file():
            stat = file.stat()
            name = file.relative_to(path.parent)
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def select_files(
    names: Collection[str], *, tag: str = "", formats: Collection[str] = FORMATS
) -> list[str]:
    """Those of a repository's files that serving needs: configs, tokenizer, templates, weights,
    and Python if `formats` has it; or GGUF files alone, if `tag` names one or there are no other
    weights.

    Raises:
        ModelLoadError: a name would leave the folder, or there are no weights of `formats`.
    """
    for name in names:
        if not is_safe_name(name):
            raise ModelLoadError(f"The repository lists an unsafe file name: {name[:80]!r}.")
    top = [name for name in names if "/" not in name]
    if "gguf" in formats and (tag or has_only_gguf(names)):
        return choose_gguf(names, tag)
    weights = _choose_weights(top)
    if "pickle" in formats and has_only_pickle(top) and not tag:
        weights = list(filter(_PICKLE_FILE.fullmatch, top))
    else:
        refuse_other_formats(["x.gguf"] if tag else top)
    templates = [
        name
        for name in names
        if name.endswith(".jinja") and str(PurePosixPath(name).parent) in _TEMPLATE_FOLDERS
    ]
    modules = [name for name in names if _MODULE_CONFIG.fullmatch(name)]
    small = [name for name in top if name.endswith((".json", ".jinja", *_TOKENIZER_SUFFIXES))]
    code = [name for name in top if name.endswith(".py")] if PYTHON in formats else []
    return sorted({*templates, *modules, *small, *weights, *code})


def refuse_other_formats(names: Collection[str]) -> None:
    """Raises: ModelLoadError: no safetensors among `names`; says what there is instead."""
    if any(name.endswith(".safetensors") for name in names):
        return
    if any(name.endswith(".gguf") for name in names):
        raise ModelLoadError(
            "The model has GGUF weights only, which none of the engines in use loads. The engines "
            "native and llama_cpp do: name one in AXION_BACKENDS."
        )
    if any(name.endswith(_PICKLE_SUFFIXES) for name in names):
        raise ModelLoadError(
            "The model has pickle weights only (.bin or .pt), which can run code when they are "
            "loaded and are refused. Use a version with safetensors, or set ALLOW_PICKLE=true, and "
            "the native engine takes the tensors of pytorch_model.bin and nothing else."
        )
    raise ModelLoadError(
        "The model has no safetensors weights. A model is a folder with config.json, tokenizer and "
        "*.safetensors, a GGUF file, or a Hugging Face id."
    )


def has_only_gguf(names: Collection[str]) -> bool:
    """Whether there are GGUF files among `names`, and no safetensors beside them."""
    has_others = any(name.endswith(".safetensors") and "/" not in name for name in names)
    return not has_others and any(name.endswith(".gguf") for name in names)


def has_only_pickle(names: Collection[str]) -> bool:
    """Whether there are `pytorch_model.bin` or its parts among `names`, and no safetensors."""
    has_others = any(name.endswith(".safetensors") for name in names)
    return not has_others and any(map(_PICKLE_FILE.fullmatch, names))


def choose_gguf(names: Collection[str], tag: str = "") -> list[str]:
    """The GGUF file, or files if it is split, that `tag` means: a quantization or a file's name.

    Raises:
        ModelLoadError: it means none, or it is empty and there are several of them.
    """
    models = {
        shard_names(name)[0]
        for name in names
        if name.endswith(".gguf") and not PurePosixPath(name).name.startswith("mmproj")
    }
    found = {name for name in models if tag and _is_meant(name, tag)}
    if not tag:
        usual = {name for name in models if _is_meant(name, _USUAL_GGUF)}
        found = usual if len(usual) == 1 else models
    if len(found) != 1:
        shown = ", ".join(sorted(found or models)[:40]) or "none"
        raise ModelLoadError(
            f"The model has {len(found) or 'no'} GGUF files that {tag[:80]!r} could mean. Put a "
            "colon behind the model's name, and a quantization such as Q4_K_M or a file's name. "
            f"There are: {shown}."
            if tag
            else f"The model has several GGUF files: {shown}. Name one."
        )
    return shard_names(found.pop())


def _is_meant(name: str, tag: str) -> bool:
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", PurePosixPath(name).stem)
    part = rf"(?:.*[-._])?{re.escape(tag)}"
    return name == tag or re.fullmatch(part, stem, re.IGNORECASE) is not None


def is_safe_name(name: str) -> bool:
    """Whether `name` is a plain relative path that stays in its folder."""
    return (
        name.isprintable()
        and "\\" not in name
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def _choose_weights(names: Collection[str]) -> list[str]:
    weights = [name for name in names if name.endswith(".safetensors")]
    if WEIGHTS_FILE in weights and INDEX_FILE not in names:
        return [WEIGHTS_FILE]
    weights = [name for name in weights if not name.startswith("consolidated")] or weights
    shards = {name for name in weights if _SHARD.fullmatch(name)}
    # Beside the weights there may be those of a variant (model.fp16-...), and what the index names
    # too: of a model that was quantized, layers that were not.
    others = [name for name in weights if not name.startswith("model.")]
    if WEIGHTS_FILE in weights:
        return [WEIGHTS_FILE, *(name for name in others if name not in shards)]
    return others if any(name.startswith("model-") for name in shards) else weights
