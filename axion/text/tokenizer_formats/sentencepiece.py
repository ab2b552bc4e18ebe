"""Sentencepiece's `tokenizer.model`: unigrams and byte pairs (github.com/google/sentencepiece)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from axion.errors import ModelLoadError
from axion.text.tokenizer_formats.common import (
    MAX_TOKEN_LENGTH,
    MAX_TOKENS,
    Converted,
    add_around,
    added_tokens,
    merges_of,
    named,
)

_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # SentencePiece.Type
_SPACE = "▁"
_MAX_CHARSMAP_BYTES = 16 * 2**20


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
        raise ModelLoadError(f"{name} is damaged: its pieces are none, too many or too long.")
    if len(set(pieces)) < len(pieces):
        raise ModelLoadError(f"{name} is damaged: it has a piece twice.")
    if not 0 <= trainer.unk_id < len(pieces):
        raise ModelLoadError(f"{name} is damaged: it has no piece for what is unknown.")
    if trainer.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise ModelLoadError(f"{name} treats spaces in a way that is not supported.")

    added = added_tokens(path, config)
    scores = [piece.score for piece in model.pieces]
    for id, token in sorted(added.items()):
        while len(pieces) < id:  # ids that nothing has
            pieces.append(f"<unused {len(pieces)}>")
        if id == len(pieces):
            pieces.append(token.content)
    scores += [min(scores)] * (len(pieces) - len(scores))

    types = {piece.piece: piece.type for piece in model.pieces}
    defined = [piece for piece, type in types.items() if type == _USER_DEFINED]
    library = tokenizers.Tokenizer(_model(name, model, pieces, scores, types))
    prefix = rules.add_dummy_prefix and config.get("add_prefix_space") is not False
    once = prefix and config.get("legacy") is False
    library.normalizer = _normalizer(name, rules, prefix=prefix and not once)
    if once:
        # A text gets its space at its very beginning only, and not before another space.
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace(_SPACE, " ")]
    steps += [decoders.ByteFallback()] * trainer.byte_fallback + [decoders.Fuse()]
    steps += [decoders.Strip(" ", 1, 0)] * prefix
    library.decoder = decoders.Sequence(steps)

    special = {token.content for token in added.values()}
    symbols = [piece for piece in defined if piece not in special]
    if prefix and symbols:
        # The text behind such a piece must not get a space, as it would behind an added token.
        symbols.sort(key=len, reverse=True)
        split = pre_tokenizers.Split(Regex("|".join(map(re.escape, symbols))), "isolated")
        before = [library.pre_tokenizer] if once else []
        library.pre_tokenizer = pre_tokenizers.Sequence([*before, split])
        symbols = []
    control = [piece for piece, type in types.items() if type == _CONTROL and piece not in special]
    library.add_tokens(
        [
            *(AddedToken(piece, normalized=False, special=True) for piece in control),
            *(AddedToken(piece, normalized=False, special=False) for piece in symbols),
            *(token for _, token in sorted(added.items())),
        ]
    )
    return _with_ends(library, trainer, pieces, config)


def _parse(name: str, data: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError):
        raise ModelLoadError(
            f"{name} is neither a sentencepiece model nor a list of tiktoken's ranks, or it is "
            "damaged. Download the model again."
        ) from None
    return model


def _is_piece(piece: str) -> bool:
    return 0 < len(piece) <= MAX_TOKEN_LENGTH


def _model(
    name: str, model: Any, pieces: list[str], scores: list[float], types: dict[str, int]
) -> Any:
    trainer = model.trainer_spec
    if trainer.model_type == _UNIGRAM:
        return models.Unigram(
            list(zip(pieces, scores, strict=True)),
            unk_id=trainer.unk_id,
            byte_fallback=trainer.byte_fallback,
        )
    if trainer.model_type != _BPE:
        raise ModelLoadError(
            f"{name} is a sentencepiece model of words or characters, which is not supported."
        )
    ids = {piece: id for id, piece in enumerate(pieces)}
    ranks = {
        piece: -score
        for piece, score in zip(pieces, scores, strict=True)
        if types.get(piece) == _NORMAL
    }
    return models.BPE(
        ids,
        merges_of(ranks),
        unk_token=pieces[trainer.unk_id],
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
        ignore_merges=_USER_DEFINED in types.values(),
    )


def _normalizer(name: str, rules: Any, *, prefix: bool) -> Any:
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        if len(rules.precompiled_charsmap) > _MAX_CHARSMAP_BYTES:
            raise ModelLoadError(f"{name} is damaged: its table of characters is too large.")
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex("^ +| +$| +(?= )"), ""))
    if prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


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
