"""What sentence-transformers writes beside a model: how a text's vectors become one, and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar, get_args

import msgspec

from axion.errors import ModelLoadError
from axion.hub.snapshot import is_safe_name

T = TypeVar("T")

PoolingMode = Literal["cls", "mean", "lasttoken"]

# Vectors are scaled to length 1 with Normalize and without.
_SUPPORTED = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


class _Module(msgspec.Struct):
    """One entry of `modules.json`.

    Attributes:
        type: a class of sentence-transformers with its module's name.
        path: folder with the module's files.
    """

    type: str
    path: str


class _Pooling(msgspec.Struct):
    """Config of the Pooling module: a name, or in older files one flag each."""

    pooling_mode: str | None = None
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False


class TransformerConfig(msgspec.Struct):
    """`sentence_bert_config.json`, or the same with another family's name.

    Attributes:
        max_seq_length: most tokens of a text; None leaves it to the tokenizer and the model.
        do_lower_case: texts are turned to small letters before the tokenizer's own work.
    """

    max_seq_length: int | None = None
    do_lower_case: bool = False


def pooling_mode(folder: Path) -> PoolingMode | None:
    """How the vectors of a text's tokens become one; None where the folder does not say.

    Raises:
        ModelLoadError: in a way that is not supported, or more is done to them, such as Dense.
    """
    name = "1_Pooling"
    if (folder / "modules.json").is_file():
        modules = _read(folder, "modules.json", list[_Module])
        kinds = [module.type.rpartition(".")[2] for module in modules]
        if kinds not in _SUPPORTED or modules[0].path or not is_safe_name(modules[1].path):
            raise ModelLoadError(
                f"modules.json asks for {', '.join(kinds)[:200]}; supported are Transformer (in "
                "the model's own folder), Pooling and, where wanted, Normalize."
            )
        name = modules[1].path
    elif not (folder / name / "config.json").is_file():
        return None
    config = _read(folder, f"{name}/config.json", _Pooling)
    modes = [
        flag.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for flag, value in msgspec.structs.asdict(config).items()
        if value is True
    ]
    if config.pooling_mode is not None:
        modes = [config.pooling_mode]
    for mode in get_args(PoolingMode):
        if modes == [mode]:
            return mode  # type: ignore[no-any-return]
    raise ModelLoadError(
        f"{name}/config.json asks for {' and '.join(modes)[:200] or 'no'} pooling; supported are "
        f"{', '.join(get_args(PoolingMode))}, one at a time."
    )


def transformer_config(folder: Path) -> TransformerConfig:
    """Raises: ModelLoadError: the file cannot be read."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        return _read(folder, path.name, TransformerConfig)
    return TransformerConfig()


def _read(folder: Path, name: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode((folder / name).read_bytes(), type=kind)
    except FileNotFoundError:
        raise ModelLoadError(f"The model has no {name}, which modules.json names.") from None
    except (OSError, msgspec.DecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelLoadError(f"{name} cannot be read: {reason}.") from None
