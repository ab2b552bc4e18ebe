"""Python that comes with a model: the class that `auto_map` in config.json names.

It is run only where it is asked for (`trust_remote_code`), for an architecture that nobody else
has, and from where it lies: the folder is a package while its modules are imported. Nothing is
copied, fetched or written.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from axion.errors import ModelLoadError
from axion.models.transformers_fallback import TransformersCausalLM

logger = logging.getLogger("axion.models")

ClassT = TypeVar("ClassT")

_REFERENCE = re.compile(r"([\w-]+)\.(\w+)", re.ASCII)


def remote_class(config: dict[str, Any], folder: Path) -> type[TransformersCausalLM]:
    """Import the class that `auto_map` names for writing text, and that of its configuration.

    Args:
        config: config.json.
        folder: of the model. Its Python code is run.

    Raises:
        ModelLoadError: `auto_map` names what is not run or not there, or the code cannot be
            imported.
    """
    from transformers import PreTrainedConfig, PreTrainedModel

    auto_map = config["auto_map"]
    places = {  # all of them before any is run
        auto: _place(auto_map[auto], folder)
        for auto in ("AutoModelForCausalLM", "AutoConfig")
        if auto in auto_map
    }
    cls = _load(*places["AutoModelForCausalLM"], folder, PreTrainedModel)
    config_cls = cls.config_class
    if "AutoConfig" in places:
        config_cls = _load(*places["AutoConfig"], folder, PreTrainedConfig)
    if config_cls is None:
        raise ModelLoadError(f"auto_map names no AutoConfig, and {cls.__name__[:80]} has none.")
    own = {"transformers_cls": cls, "hf_config_cls": config_cls, "source": "the model's own class"}
    return type(cls.__name__, (TransformersCausalLM,), own)


def _place(reference: Any, folder: Path) -> tuple[str, str]:
    """Module and class of `module.Class`, of which the module is in the folder."""
    shown = repr(reference)[:200]
    if isinstance(reference, str) and "--" in reference:
        raise ModelLoadError(
            f"auto_map names {shown}, code of another repository, which is never run: only files "
            "beside config.json are."
        )
    found = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if found is None:
        raise ModelLoadError(f"auto_map names {shown}, expected such as 'modeling_x.XForCausalLM'.")
    module, name = found.groups()
    if not (folder / f"{module}.py").is_file():
        raise ModelLoadError(
            f"{module}.py, which auto_map names, is not in the model's folder. Download the model "
            "again with TRUST_REMOTE_CODE=true."
        )
    return module, name


def _load(module: str, name: str, folder: Path, base: type[ClassT]) -> type[ClassT]:
    logger.warning("TRUST_REMOTE_CODE: running %s.py, which comes with the model", module)
    try:
        with _no_bytecode():
            loaded = importlib.import_module(f"{_package(folder)}.{module}")
    except Exception as error:  # whatever the author's code does
        logger.error("%s.py cannot be imported", module, exc_info=error)
        reason = re.sub(r" ?\(/[^)]*\)", "", f"{type(error).__name__}: {error}")  # a path
        reason = " ".join(reason.replace(f"{folder}/", "").split())[:300]
        raise ModelLoadError(
            f"The model's own {module}.py cannot be imported: {reason}. It may need a Python "
            "package, or another version of transformers."
        ) from None
    cls = getattr(loaded, name, None)
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise ModelLoadError(f"{module}.py has no {base.__name__} {name[:80]}.")
    return cls


def _package(folder: Path) -> str:
    """The name of the package that the folder is, by which its modules find each other."""
    name = f"axion_remote_code_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    package = sys.modules.setdefault(name, ModuleType(name))
    package.__path__ = [str(folder)]
    importlib.invalidate_caches()
    return name


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Python leaves nothing in the model's folder."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
