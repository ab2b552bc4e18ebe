"""Which tokens end a model's sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axion.errors import ModelLoadError
from axion.hub.config import MAX_CONFIG_BYTES, load_json
from axion.hub.gguf import is_gguf, read_gguf
from axion.hub.gguf_config import gguf_generation_config
from axion.text.tokenizer import load_tokenizer

_MAX_TOKENIZER_BYTES = 256 * 2**20


def eos_token_ids(path: Path) -> tuple[int, ...]:
    """Ids that end a sequence: of config.json, generation_config.json and tokenizer together.

    Raises:
        ModelLoadError: one of these files is damaged.
    """
    if is_gguf(path):
        return tuple(gguf_generation_config(read_gguf(path))["eos_token_id"])
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        config = _load_if_there(path / name, MAX_CONFIG_BYTES)
        for part in (config, config.get("text_config")):
            ids = part.get("eos_token_id") if isinstance(part, dict) else None
            found.update(id for id in (ids if isinstance(ids, list) else [ids]) if type(id) is int)
    if not (path / "tokenizer.json").exists():
        return tuple(sorted(found | _eos_of_other_tokenizer(path)))
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


def _eos_of_other_tokenizer(path: Path) -> set[int]:
    try:
        tokenizer = load_tokenizer(path)
    except ModelLoadError:  # there is none; who needs one says so
        return set()
    id = tokenizer.token_to_id(tokenizer.eos_token) if tokenizer.eos_token else None
    return set() if id is None else {id}


def _load_if_there(path: Path, max_bytes: int) -> dict[str, Any]:
    return load_json(path, max_bytes) if path.exists() else {}
