"""Text to token ids and back, on the Hugging Face `tokenizers` library."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from axion.errors import AxionError, InternalError, InvalidRequestError, ModelLoadError
from axion.hub.gguf import is_gguf, read_gguf
from axion.text.byte_alphabet import BYTE_ALPHABET, from_alphabet
from axion.text.tokenizer_formats import convert
from axion.text.tokenizer_formats.gguf import convert as convert_gguf

# Parallelism only helps batches, and the library warns about it at every later fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DAMAGED = "The model's tokenizer is damaged: its tables contradict."
FAILED_ON_TEXT = "The model's tokenizer failed on this text."

TokenToBytes = Callable[[str], bytes]


class Tokenizer:
    """A model's tokenizer; safe to use from several threads at once.

    Decoding is defined on bytes: every token stands for a byte string, and the text of a
    sequence is their concatenation read as UTF-8, with U+FFFD for what is not UTF-8. This is
    what sentencepiece does, and what lets text be streamed (`IncrementalDetokenizer`). The
    library's own `decode` differs in two places, to their loss: one wrong byte makes it give up
    a whole run of byte tokens, and it takes the letters of an added token such as `café` for
    bytes.

    Attributes:
        vocab_size: tokens, added ones included. A model's embedding may have more rows.
        special_tokens: the named ones (`bos_token`, `eos_token`, ...), as a chat template sees
            them.
        special_token_ids: ids that `skip_special_tokens` leaves out.
        strips_leading_space: the first token's leading space is not part of the text.
        max_quick_chars: texts of at most so many characters are encoded in less time than a thread
            takes to be asked.
    """

    max_quick_chars = 4096

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, special_tokens: dict[str, str] | None = None
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.special_tokens = special_tokens or {}
        tokenizer.add_special_tokens(_unmarked(tokenizer, self.special_tokens.values()))
        added = tokenizer.get_added_tokens_decoder()
        self.special_token_ids = frozenset(id for id, token in added.items() if token.special)
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._tokenizer = tokenizer
        self._added_token_ids = added.keys()
        self._token_to_bytes, self.strips_leading_space = _byte_rule(tokenizer)
        self._bytes: dict[int, bytes] = {}
        self._most_chars = _most_chars_of_a_token(tokenizer)

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens.get("eos_token")

    def token_to_id(self, token: str) -> int | None:
        id: int | None = self._tokenizer.token_to_id(token)
        return id

    def id_to_token(self, id: int) -> str | None:
        """A token as the vocabulary writes it (`Ġthe`, `▁the`); None outside the vocabulary."""
        token: str | None = self._tokenizer.id_to_token(id)
        return token

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a plain text, with the special tokens that the model wants around it.

        Raises:
            InvalidRequestError: the text is not Unicode: it has an unpaired surrogate.
            InternalError: the tokenizer's files led the library astray.
        """
        as_utf8(text)
        with panics_as(InternalError(FAILED_ON_TEXT)):
            # Unlike the library's `encode`, its batch methods let other threads run meanwhile.
            (encoding,) = self._tokenizer.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        ids: list[int] = encoding.ids
        return ids

    def encode_chat(self, rendered: str) -> list[int]:
        """Token ids of a rendered chat template, which has written every special token itself."""
        return self.encode(rendered, add_special_tokens=False)

    def encode_continuation(self, text: str) -> list[int] | None:
        """Token ids that add exactly `text` to a text before it; None if there are none.

        Some tokenizers begin a text with a space of their own: behind another character they do
        not.
        """
        for before in ("", "\n", "x"):
            start = self.encode(before, add_special_tokens=False)
            ids = self.encode(before + text, add_special_tokens=False)
            added = ids[len(start) :]
            if ids[: len(start)] == start and text.encode() == self.bytes_of(
                added, skip_special_tokens=False
            ):
                return added
        return None

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of a text's number of tokens, without encoding it."""
        return -(-len(text) // self._most_chars) if self._most_chars else 0

    def end_of(self, text: str, num_tokens: int) -> str:
        """As much of a text's end as so many tokens can have."""
        return text[-num_tokens * self._most_chars :] if self._most_chars else text

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence; ids that are not in the vocabulary have none."""
        text = self.bytes_of(ids, skip_special_tokens=skip_special_tokens).decode(errors="replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def id_to_token_bytes(self, id: int) -> bytes:
        """The exact bytes that a token adds to a text that it does not begin."""
        data = self._bytes.get(id)
        if data is None:
            data = self._bytes[id] = self._compute_bytes(id)
        return data

    def bytes_of(self, ids: Iterable[int], *, skip_special_tokens: bool) -> bytes:
        """The bytes that `ids` add to a text."""
        skipped = self.special_token_ids if skip_special_tokens else frozenset()
        return b"".join(self.id_to_token_bytes(id) for id in ids if id not in skipped)

    def close(self) -> None:
        """End the process that encodes, where there is one."""

    def _compute_bytes(self, id: int) -> bytes:
        token = self._tokenizer.id_to_token(id)
        if token is None:
            return b""
        if id in self._added_token_ids and self._token_to_bytes is _byte_level_bytes:
            return bytes(token.encode())  # its text never went through the byte alphabet
        return self._token_to_bytes(token)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model folder (`tokenizer.json`, or one of `tokenizer_formats`), or of a
    GGUF file.

    Raises:
        ModelLoadError: there is no tokenizer, or a file of it is damaged.
    """
    with panics_as(ModelLoadError(DAMAGED)):
        return Tokenizer(*read_library_tokenizer(path))


def read_library_tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The same as the library has it, and the named special tokens.

    Raises:
        ModelLoadError: as `load_tokenizer`.
    """
    if is_gguf(path):
        return convert_gguf(read_gguf(path).metadata)
    config = read_tokenizer_config(path)
    special_tokens = _named_special_tokens(read_json(path / "special_tokens_map.json") | config)
    file = path / "tokenizer.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file)), special_tokens
        except Exception as error:  # the library raises nothing narrower
            raise ModelLoadError(
                f"tokenizer.json cannot be read by the tokenizers library: {error}"
            ) from None
    converted = convert(path, config)
    if converted is None:
        raise ModelLoadError(_missing_tokenizer(path))
    return converted.tokenizer, converted.special_tokens | special_tokens


def as_utf8(text: str) -> bytes:
    """Raises: InvalidRequestError: `text` is not Unicode: it has an unpaired surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "The text has an unpaired surrogate (such as \\ud800), which is not a character."
        ) from None


@contextmanager
def panics_as(error: AxionError) -> Iterator[None]:
    """Raises `error` where a file leads the library's Rust out of its bounds."""
    try:
        yield
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":  # the library does not export it
            raise
        raise error from panic


def read_tokenizer_config(path: Path) -> dict[str, Any]:
    """`tokenizer_config.json` of a model folder, empty where there is none."""
    return read_json(path / "tokenizer_config.json")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file.

    Raises:
        ModelLoadError: the file holds something else.
    """
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{file.name} is not a JSON object.")
    return content


def _missing_tokenizer(path: Path) -> str:
    other = [name for name in ("vocab.json", "vocab.txt") if (path / name).is_file()]
    found = f" ({other[0]} alone does not say how texts are cut)" if other else ""
    return (
        f"The model has no tokenizer{found}: expected tokenizer.json, tokenizer.model, tekken.json "
        "or a file of tiktoken. Use a repository that has one, or write it with "
        "AutoTokenizer.from_pretrained(model).save_pretrained(folder)."
    )


def _named_special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and its like, given as strings or as serialised `AddedToken`s."""
    extra = config.get("extra_special_tokens")
    entries = config | (extra if isinstance(extra, dict) else {})
    named = {}
    for name, value in entries.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(token, str):
            named[name] = token
    return named


def _unmarked(tokenizer: tokenizers.Tokenizer, named: Iterable[str]) -> list[str]:
    """The named special tokens that are in the vocabulary without being marked as special."""
    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    return [
        token
        for token in named
        if token not in special and tokenizer.token_to_id(token) is not None
    ]


def _byte_rule(tokenizer: tokenizers.Tokenizer) -> tuple[TokenToBytes, bool]:
    """How a token becomes bytes, and whether a text's leading space is stripped."""
    steps = _components(tokenizer.decoder) or _components(tokenizer.pre_tokenizer)
    by_type = {step["type"]: step for step in steps}
    if "ByteLevel" in by_type:
        return _byte_level_bytes, False
    if "Metaspace" in by_type:
        metaspace = by_type["Metaspace"]
        strips = metaspace.get("prepend_scheme") != "never"
        return _sentencepiece_bytes(
            [(metaspace["replacement"], " ")], "ByteFallback" in by_type
        ), strips
    if by_type.keys() <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "Replace" in by_type:
        replacements = [
            (step["pattern"].get("String"), step["content"])
            for step in steps
            if step["type"] == "Replace"
        ]
        if all(old for old, _ in replacements):
            strips = by_type.get("Strip", {}).get("start", 0) > 0
            return _sentencepiece_bytes(replacements, "ByteFallback" in by_type), strips
    return _library_bytes(tokenizer), True


def _components(component: Any) -> list[dict[str, Any]]:
    """The steps of a decoder, normalizer or pre-tokenizer, as `tokenizer.json` writes them."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    if state["type"] != "Sequence":
        return [state]
    steps: list[dict[str, Any]] = next(
        state[name] for name in ("decoders", "normalizers", "pretokenizers") if name in state
    )
    return steps


def _most_chars_of_a_token(tokenizer: tokenizers.Tokenizer) -> int:
    """How many characters of a text one token can stand for at most; 0 if there is no bound.

    There is one where no step drops or merges characters on the way to the tokens, and every
    byte has a token, so that nothing ends in an unknown one.
    """
    shrinks = 1
    for step in _components(tokenizer.normalizer):
        if step["type"] == "NFC":
            shrinks *= 4  # the longest canonical decomposition (UAX 15) has four characters
        elif step["type"] == "Replace":
            pattern = step["pattern"].get("String")
            if pattern is None or len(pattern) > len(step["content"]):
                return 0
        elif step["type"] != "Prepend":
            return 0
    steps = _components(tokenizer.pre_tokenizer)
    kinds = {step["type"] for step in steps}
    if not kinds <= {"ByteLevel", "Digits", "Metaspace", "Split"}:
        return 0
    if any(step.get("behavior") == "Removed" for step in steps):
        return 0
    if any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()):
        return 0
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if "ByteLevel" in kinds:
        byte_tokens = set(BYTE_ALPHABET)
    elif getattr(tokenizer.model, "byte_fallback", False):
        byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    else:
        return 0
    return shrinks * max(map(len, vocabulary)) if byte_tokens <= vocabulary.keys() else 0


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_bytes(token: str) -> bytes:
    try:
        return from_alphabet(token)
    except KeyError:
        return token.encode()


def _sentencepiece_bytes(replacements: list[tuple[str, str]], byte_fallback: bool) -> TokenToBytes:
    def to_bytes(token: str) -> bytes:
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return to_bytes


def _library_bytes(tokenizer: tokenizers.Tokenizer) -> TokenToBytes:
    """For other decoders (WordPiece, ...): what the library writes for a token after another."""

    def to_bytes(token: str) -> bytes:
        decoder = tokenizer.decoder
        if decoder is None:
            return f" {token}".encode()
        first = "x"
        text: str = decoder.decode([first, token])
        return text.removeprefix(decoder.decode([first])).encode()

    return to_bytes
