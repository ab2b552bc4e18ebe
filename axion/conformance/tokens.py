"""Token ids of texts: from the model's own files, else from the server."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from axion.conformance.server import FaultError, Server
from axion.hub.gguf import is_gguf

_ENDS = (
    "<|im_end|>",
    "</s>",
    "<|eot_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<eos>",
)


class Tokens:
    """Args:
    path: the model's folder, if it is here.
    """

    def __init__(self, server: Server, path: Path | None = None) -> None:
        self._server = server
        self._path = path
        self._tokenizer: Any = None
        self._known: dict[str, list[int]] = {}
        if path is not None and (is_gguf(path) or (path / "tokenizer.json").is_file()):
            from axion.text.tokenizer import load_tokenizer

            self._tokenizer = load_tokenizer(path)

    async def encode(self, text: str) -> list[int]:
        """The ids of a text, without those that a tokenizer adds; none where nobody knows."""
        if text not in self._known:
            self._known[text] = await self._encode(text)
        return self._known[text]

    async def ends(self) -> list[int]:
        """Ids of tokens that may end an answer."""
        ids: dict[int, None] = {}
        for name in ("generation_config.json", "config.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                if self._path is not None:
                    given = json.loads((self._path / name).read_text()).get("eos_token_id")
                    ids.update(dict.fromkeys(given if isinstance(given, list) else [given]))
        for text in _ENDS:
            found = await self.encode(text)
            if len(found) == 1:
                ids[found[0]] = None
        ids.pop(None, None)  # type: ignore[call-overload]
        return [*ids]

    async def _encode(self, text: str) -> list[int]:
        if self._tokenizer is not None:
            token_id = self._tokenizer.token_to_id(text)
            if token_id is not None:
                return [token_id]
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
            return ids
        forms: tuple[dict[str, Any], ...] = (
            {"model": self._server.model, "prompt": text, "add_special_tokens": False},
            {"content": text, "add_special": False, "parse_special": True},
        )
        for form in forms:
            with contextlib.suppress(FaultError, ValueError, TypeError, KeyError):
                response = await self._server.post("/tokenize", form)
                tokens = response.json()["tokens"]
                if response.is_success and tokens:  # one form may be taken and read as nothing
                    return [int(token) for token in tokens]
        return []
