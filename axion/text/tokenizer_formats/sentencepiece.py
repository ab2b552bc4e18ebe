"""Sentencepiece's `tokenizer.model`: unigrams and byte pairs (github.com/google/sentencepiece)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from axion.errors import ModelLoadError
from axion.text.tokenizer_formats.common import (
    MAX_TOKEN_LENGTH,
    MAX_TOKENS,
    SPACE,
    Converted,
    add_around,
    added_tokens,
    merges_of,
    named,
    sentencepiece_decoder,
)

_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # SentencePiece.Type
_TEXT = {_NORMAL, _USER_DEFINED}
_NEVER = -1e6  # a score
# What is left out where texts have no more spaces than they need.
EXTRA_SPACES = "^ +| +$| +(?= )"


def convert(name: str, data: bytes, path: Path, config: dict[str, Any]) -> Converted:
    """The tokenizer in the sentencepiece model `data`, with the tokens that its folder adds.

    A text becomes the ids that sentencepiece gives it. Special tokens in it are found, as
    transformers does; behind one the text begins anew, with the space that many models put
    before a text, unless tokenizer_config.json has `legacy: false`.

    Raises:
        ModelLoadError: it is damaged, or of a kind that cannot be computed.
    """
    model = _parse(name, data)
    trainer, rules = model.trainer_spec, model.normalizer_spec
    pieces = [piece.piece for piece in model.pieces]
    if not pieces or len(pieces) > MAX_TOKENS or not all(map(_is_piece, pieces)):
        raise ModelLoadError(
            f"{name} is damaged: its pieces are none, too many, too long or no text."
        )
    if len(set(pieces)) < len(pieces):
        raise ModelLoadError(f"{name} is damaged: it has a piece twice.")
    if not 0 <= trainer.unk_id < len(pieces):
        raise ModelLoadError(f"{name} is damaged: it has no piece for what is unknown.")
    if trainer.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise ModelLoadError(f"{name} treats spaces in a way that is not supported.")

    added = added_tokens(path, config)
    for id, token in sorted(added.items()):
        while len(pieces) < id:  # ids that nothing has
            pieces.append(f"<unused {len(pieces)}>")
        if id == len(pieces):
            pieces.append(token.content)

    types = {piece.piece: piece.type for piece in model.pieces}
    library = tokenizers.Tokenizer(_model(name, model, pieces, types))
    prefix = rules.add_dummy_prefix and config.get("add_prefix_space") is not False
    # A text then gets its space at its very beginning only, and not before another space.
    once = prefix and config.get("legacy") is False
    library.normalizer = _normalizer(name, rules, prefix=prefix and not once)
    cuts: list[Any] = []
    if once:
        cuts.append(pre_tokenizers.Metaspace(prepend_scheme="first", split=False))
    symbols = [piece for piece, type in types.items() if type == _USER_DEFINED]
    if symbols:
        symbols.sort(key=len, reverse=True)
        pattern = Regex("|".join(map(re.escape, symbols)))
        cuts.append(pre_tokenizers.Split(pattern, "isolated"))
    library.pre_tokenizer = pre_tokenizers.Sequence(cuts) if cuts else None
    library.decoder = sentencepiece_decoder(has_bytes=trainer.byte_fallback, has_prefix=prefix)
    control = {
        id: AddedToken(piece, normalized=False, special=True)
        for id, piece in enumerate(pieces)
        if types.get(piece) == _CONTROL
    }
    library.add_tokens([token for _, token in sorted((control | added).items())])
    return _with_ends(library, trainer, pieces, config)


def _parse(name: str, data: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(data)
        whole = model.HasField("trainer_spec") and model.HasField("normalizer_spec")
    except (DecodeError, RecursionError):
        whole = False
    if not whole:
        raise ModelLoadError(
            f"{name} is neither a sentencepiece model nor a list of tiktoken's ranks, or it is "
            "damaged. Download the model again."
        )
    return model


def _is_piece(piece: str | bytes) -> bool:
    # What is not UTF-8 protobuf gives as bytes.
    return isinstance(piece, str) and 0 < len(piece) <= MAX_TOKEN_LENGTH


def _model(name: str, model: Any, pieces: list[str], types: dict[str, int]) -> Any:
    trainer = model.trainer_spec
    scores = {piece.piece: piece.score for piece in model.pieces}
    if trainer.model_type == _UNIGRAM:
        # Of what is not text (control, bytes, unknown) no text becomes.
        return models.Unigram(
            [(piece, scores[piece] if types.get(piece) in _TEXT else _NEVER) for piece in pieces],
            unk_id=trainer.unk_id,
            byte_fallback=trainer.byte_fallback,
        )
    if trainer.model_type != _BPE:
        raise ModelLoadError(
            f"{name} is a sentencepiece model of words or characters, which is not supported."
        )
    return models.BPE(
        {piece: id for id, piece in enumerate(pieces)},
        merges_of({piece: -scores[piece] for piece in pieces if types.get(piece) == _NORMAL}),
        unk_token=pieces[trainer.unk_id],
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
        ignore_merges=_USER_DEFINED in types.values(),  # no merges lead to these
    )


def _normalizer(name: str, rules: Any, *, prefix: bool) -> Any:
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        try:
            steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
        except Exception:  # the library raises nothing narrower
            raise ModelLoadError(f"{name} is damaged: its table of characters is none.") from None
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(EXTRA_SPACES), ""))
    if prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _with_ends(
    library: tokenizers.Tokenizer, trainer: Any, pieces: list[str], config: dict[str, Any]
) -> Converted:
    ids = {name: getattr(trainer, f"{name}_id") for name in ("unk", "bos", "eos", "pad")}
    special = {f"{name}_token": pieces[id] for name, id in ids.items() if 0 <= id < len(pieces)}
    bos, eos = (named(config, name) or special.get(name) for name in ("bos_token", "eos_token"))
    add_around(
        library,
        before=bos if config.get("add_bos_token", True) else None,
        after=eos if config.get("add_eos_token", False) else None,
    )
    return Converted(library, special)
