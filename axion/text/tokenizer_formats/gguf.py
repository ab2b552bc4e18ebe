"""The tokenizer in a GGUF file: byte-level pairs (`gpt2`), sentencepiece's (`llama`), and pairs of
characters (`gemma4`).

A file names the way in which texts are cut into words, `tokenizer.ggml.pre`; what the names stand
for is in llama.cpp (`llama-vocab.cpp`), and in the tokenizers that they were made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from axion.errors import ModelLoadError
from axion.text.tokenizer_formats.common import (
    CL100K,
    MAX_TOKEN_LENGTH,
    QWEN2,
    SPACE,
    Converted,
    add_around,
    merges_of,
    sentencepiece_decoder,
)
from axion.text.tokenizer_formats.tiktoken import KIMI

# Of `tokenizer.ggml.token_type`.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # spelled so
    "mask_token": "mask_token_id",
}


class _Cut(NamedTuple):
    """How texts become words, each of which becomes tokens.

    Attributes:
        patterns: each cuts what the one before it has left.
        whole_words: a word that is a token is that token, whatever merges say.
        add_bos: unless the file says otherwise.
        composed: texts are brought to normal form C first.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    composed: bool = False


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DIGITS = r"\p{N}"
# The file has a list of ranges: the letters that have cases, but for Georgian's.
_DEEPSEEK_LETTERS = r"\s?[\p{Lu}\p{Ll}\p{Lt}&&[^\x{10D0}-\x{10FF}]]+"
_DEEPSEEK_SIGNS = (
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+"
)
_DEEPSEEK_CJK = r"[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}]+"
_DEEPSEEK3_CJK = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BY_DIGIT = _Cut((_DIGITS, _GPT2))
_PLAIN = _Cut((_GPT2,))
_CUTS: dict[str, _Cut] = {
    "default": _Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"),
        _Cut((CL100K,), whole_words=True, add_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _Cut((CL100K,))),
    **dict.fromkeys(("glm4", "glm5"), _Cut((CL100K,), whole_words=True)),
    "qwen2": _Cut((QWEN2,), composed=True),
    "qwen35": _Cut((_QWEN35,), composed=True),
    **dict.fromkeys(
        ("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "kormo"), _Cut((QWEN2,))
    ),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "gigachat", "a.x-4.0", "mellum", "exaone4", "jais"), _PLAIN
    ),
    "olmo": _Cut((_GPT2,), composed=True),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
        _BY_DIGIT,
    ),
    "falcon": _Cut((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "tekken": _Cut((_TEKKEN,), whole_words=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _Cut((_GPT4O,))),
    "kimi-k2": _Cut((KIMI,), whole_words=True),
    "deepseek-llm": _Cut(
        (r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_SIGNS, r"\s+$", _DEEPSEEK_CJK, r"\p{N}+")
    ),
    "deepseek-coder": _Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _DIGITS)),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense"),
        _Cut((r"\p{N}{1,3}", _DEEPSEEK3_CJK, _DEEPSEEK3)),
    ),
}

PATTERNS = frozenset(pattern for cut in _CUTS.values() for pattern in cut.patterns)


def convert(metadata: Mapping[str, Any]) -> Converted:
    """The tokenizer that a GGUF file's metadata describes.

    Raises:
        ModelLoadError: there is none, it is damaged, or of a kind that is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelLoadError(
            f"The GGUF file's tokenizer is of the kind {str(kind)[:80]!r}, which is not supported. "
            f"Supported: {', '.join(_KINDS)}."
        )
    vocabulary = _Vocabulary(metadata)
    library, add_bos = _KINDS[kind](vocabulary)
    added = {
        id: AddedToken(token, normalized=SPACE in token, special=type == _CONTROL)
        for id, (token, type) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if type in (_CONTROL, _USER_DEFINED)
    }
    library.add_tokens(list(added.values()))
    special_tokens = {
        name: vocabulary.tokens[id]
        for name, key in _NAMED.items()
        if type(id := vocabulary.get(key)) is int and 0 <= id < len(vocabulary.tokens)
    }
    # The first files of Gemma 4 say that they have none.
    adds_bos = kind == "gemma4" or vocabulary.get("add_bos_token", add_bos)
    add_around(
        library,
        before=special_tokens.get("bos_token") if adds_bos else None,
        after=special_tokens.get("eos_token") if vocabulary.get("add_eos_token") else None,
    )
    return Converted(library, special_tokens)


class _Vocabulary:
    """The lists of a tokenizer, which fit each other."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens = self._list("tokens", str)
        count = len(self.tokens)
        self.types = self._list("token_type", int) or [_NORMAL] * count
        self.scores = self._list("scores", float)
        if not count or len(self.types) != count or len(self.scores) not in (0, count):
            raise ModelLoadError(
                "The GGUF file's tokenizer is damaged: its lists differ in length."
            )
        if len(set(self.tokens)) < count:
            raise ModelLoadError("The GGUF file's tokenizer is damaged: it has a token twice.")
        if max(map(len, self.tokens)) > MAX_TOKEN_LENGTH:
            raise ModelLoadError("The GGUF file's tokenizer is damaged: a token is too long.")

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def _list(self, key: str, kind: type) -> list[Any]:
        values = self.get(key, [])
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise ModelLoadError(f"The GGUF file's tokenizer.ggml.{key} is not a list of its kind.")
        return values

    def merges(self) -> list[tuple[str, str]]:
        merges = [tuple(merge.split(" ", 1)) for merge in self._list("merges", str)]
        if any(len(merge) != 2 for merge in merges):
            raise ModelLoadError("The GGUF file's tokenizer is damaged: a merge is not of two.")
        return merges

    def ids(self) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens)}


def _byte_level(vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    name = vocabulary.get("pre", "default")
    if not isinstance(name, str) or name not in _CUTS:
        raise ModelLoadError(
            f"The GGUF file's tokenizer cuts texts by the rule {str(name)[:80]!r} "
            f"(tokenizer.ggml.pre), which is not supported. Supported: {', '.join(sorted(_CUTS))}."
        )
    cut, merges = _CUTS[name], vocabulary.merges()
    try:
        # Without merges it is its words that are tokens.
        model = models.BPE(vocabulary.ids(), merges, ignore_merges=cut.whole_words or not merges)
    except Exception as error:  # the library raises nothing narrower
        raise ModelLoadError(f"The GGUF file's tokenizer is damaged: {error}") from None
    library = tokenizers.Tokenizer(model)
    if cut.composed:
        library.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    return library, cut.add_bos


def _sentencepiece(vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    if not vocabulary.scores:
        raise ModelLoadError("The GGUF file's tokenizer has no scores.")
    ranks = {
        token: -score
        for token, score, type in zip(
            vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True
        )
        if type == _NORMAL
    }
    has_prefix = bool(vocabulary.get("add_space_prefix", True))
    return _characters(vocabulary, merges_of(ranks), has_prefix=has_prefix), True


def _character_pairs(vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    return _characters(vocabulary, vocabulary.merges(), has_prefix=False), True


def _characters(
    vocabulary: _Vocabulary, merges: list[tuple[str, str]], *, has_prefix: bool
) -> tokenizers.Tokenizer:
    """Pairs of characters, spaces among them; what is no token is bytes."""
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    unknown = next((token for token, type in types.items() if type == _UNKNOWN), None)
    has_bytes = _BYTE in types.values()
    try:
        model = models.BPE(
            vocabulary.ids(), merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes
        )
    except Exception as error:  # the library raises nothing narrower
        raise ModelLoadError(f"The GGUF file's tokenizer is damaged: {error}") from None
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE)] * has_prefix + [normalizers.Replace(" ", SPACE)]
    )
    library.decoder = sentencepiece_decoder(has_bytes=has_bytes, has_prefix=has_prefix)
    return library


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _character_pairs}
