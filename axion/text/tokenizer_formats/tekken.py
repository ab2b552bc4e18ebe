"""Mistral's `tekken.json`: ranked tokens, special tokens and the version of the chat's format.

Source: mistral-common (github.com/mistralai/mistral-common), which defines the format.
"""

from __future__ import annotations

import binascii
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import msgspec
from tokenizers import AddedToken

from axion.errors import ModelLoadError
from axion.text.tokenizer_formats.common import MAX_TOKENS, Converted, add_around, read_file
from axion.text.tokenizer_formats.tiktoken import byte_pairs

FILE = "tekken.json"

# Of the files that do not list them (v3 and v7).
_FIRST_SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

Struct = TypeVar("Struct", bound=msgspec.Struct)
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_Effort = Annotated[str, msgspec.Meta(pattern=r"\A[a-z]{1,32}\Z")]


class _Token(msgspec.Struct):
    token_bytes: bytes  # base64


class _SpecialToken(msgspec.Struct):
    rank: _Count
    token_str: str


class _Config(msgspec.Struct):
    pattern: str
    default_vocab_size: _Count
    default_num_special_tokens: _Count
    version: str


class _File(msgspec.Struct):
    config: _Config
    vocab: list[_Token]
    special_tokens: list[_SpecialToken] | None = None


class ReasoningEffort(msgspec.Struct):
    """Levels of reasoning, and the one that a chat has where it asks for none."""

    values: list[_Effort]
    default: _Effort


class _Settings(msgspec.Struct):
    reasoning_effort: ReasoningEffort | None = None


class _Head(msgspec.Struct):
    config: _Config
    special_tokens: list[_SpecialToken] | None = None
    model_settings_builder: _Settings | None = None


class ChatFormat(NamedTuple):
    """How chats are written.

    Attributes:
        version: such as `v3`.
        thinks: reasoning has tokens around it.
        reasoning_effort: since v15, of models that have levels.
    """

    version: str
    thinks: bool = False
    reasoning_effort: ReasoningEffort | None = None


def chat_format(path: Path) -> ChatFormat:
    """The format of the chats of a tokenizer.

    Raises:
        ModelLoadError: the file is damaged.
    """
    head = _decode(path, _Head)
    thinks = any(token.token_str == "[THINK]" for token in head.special_tokens or ())
    settings = head.model_settings_builder or _Settings()
    return ChatFormat(head.config.version, thinks, settings.reasoning_effort)


def convert(path: Path) -> Converted:
    """The tokenizer in the file `path`. Special tokens have the first ids.

    Raises:
        ModelLoadError: the file is damaged.
    """
    file = _decode(path, _File)
    num_special = file.config.default_num_special_tokens
    num_ranks = file.config.default_vocab_size - num_special
    if not 256 <= num_ranks <= len(file.vocab):
        raise ModelLoadError(f"{path.name} is damaged: it has {len(file.vocab)} tokens.")
    listed = (
        {token.rank: token.token_str for token in file.special_tokens}
        if file.special_tokens is not None
        else dict(enumerate(_FIRST_SPECIAL_TOKENS))
    )
    if len(listed) > num_special or max(listed, default=0) >= num_special:
        raise ModelLoadError(f"{path.name} is damaged: it has more special tokens than it says.")
    special = {
        id: AddedToken(listed.get(id, f"<SPECIAL_{id}>"), normalized=False, special=True)
        for id in range(num_special)
    }
    ranks = {token.token_bytes: num_special + i for i, token in enumerate(file.vocab[:num_ranks])}
    library = byte_pairs(path.name, ranks, special, file.config.pattern)
    add_around(library, before=_NAMED["bos_token"])
    contents = {token.content for token in special.values()}
    return Converted(library, {key: token for key, token in _NAMED.items() if token in contents})


def _decode(path: Path, type: type[Struct]) -> Struct:
    try:
        return msgspec.json.decode(read_file(path), type=type)
    except (msgspec.DecodeError, binascii.Error, RecursionError) as error:
        raise ModelLoadError(
            f"{path.name} is damaged ({error}). Download the model again."
        ) from None
