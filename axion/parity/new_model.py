"""`axion new-model`: the starting file of an architecture, its row, and what is known of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from axion.errors import InvalidRequestError, ModelLoadError
from axion.models.base import CausalLM
from axion.models.config import (
    DecoderConfig,
    LocalRopeConfig,
    SwitchedWindowConfig,
    WindowConfig,
    is_harmless,
)
from axion.models.mla import MLA, MLAConfig
from axion.models.moe import MoEConfig, MoEForCausalLM, SharedMoEConfig, SharedMoEForCausalLM
from axion.models.registry import model_classes
from axion.parity import tiny
from axion.parity.messages import NewModelRequest, Written
from axion.parity.modules import checkpoint_names, renamed_names
from axion.parity.sizes import TINY

ROWS = Path("tests/parity/checkpoints.py")
_MODELS = Path("axion/models")
# The configuration's field by which transformers' families are told apart, and what they become.
_KINDS: tuple[tuple[str, type[DecoderConfig], type[CausalLM]], ...] = (
    ("kv_lora_rank", MLAConfig, SharedMoEForCausalLM),
    ("n_shared_experts", SharedMoEConfig, SharedMoEForCausalLM),
    ("num_experts", MoEConfig, MoEForCausalLM),
    ("num_local_experts", MoEConfig, MoEForCausalLM),
    ("n_routed_experts", MoEConfig, MoEForCausalLM),
)
# Types of fields, and where they come from.
_ALIASES = {
    **dict.fromkeys(("Length", "Positive"), "axion.layers.rotary"),
    **dict.fromkeys(("Epsilon", "Index", "NumExperts", "NumLayers", "Size"), "axion.models.config"),
}


def write(request: NewModelRequest) -> Written:
    """Write both, and find out what is left to do.

    Raises:
        AxionError: transformers does not have the architecture, or there is something already.
    """
    config = tiny.base_config(request.name)
    if not hasattr(config, "num_hidden_layers"):
        raise InvalidRequestError(
            f"{request.name} is more than a text model. Name the class of its text part."
        )
    [architecture] = config.architectures
    if (there := model_classes().get(architecture)) is not None:
        raise InvalidRequestError(f"{architecture} is there already: {there.__module__}.")
    stem = config.model_type.replace("-", "_").removesuffix("_text")
    checkout = Path(request.checkout)
    file, case = _MODELS / f"{stem}.py", stem.replace("_", "-")
    rows = (checkout / ROWS).read_text()
    if (checkout / file).exists() or f'    "{case}":' in rows:
        raise InvalidRequestError(f"{file} or its row {case!r} is there already.")
    small = tiny.small_config(request.name)
    rows = _with_row(rows, case, architecture, small)
    (checkout / file).write_text(_source(architecture, config))
    (checkout / ROWS).write_text(rows)
    model_class = _imported(stem, architecture)
    moving = _moving_fields(small, model_class.config_cls)
    return Written(
        architecture=architecture,
        files=(str(file), str(ROWS)),
        relatives=_relatives(config),
        tensors=_tensors(small, model_class, moving),
        fields=tuple(f"{name} = {value!r}" for name, value in moving.items()),
    )


def _source(architecture: str, config: PreTrainedConfig) -> str:
    name = re.sub(r"(ForCausalLM|LMHeadModel)$", "", architecture)
    given = config.to_dict()
    kinds = [kind for kind in _KINDS if given.get(kind[0]) is not None]
    config_bases = [kinds[0][1]] if kinds else []
    if (window := _window_base(given)) is not None:
        config_bases.insert(0, window)
    config_bases = config_bases or [DecoderConfig]
    model_base = kinds[0][2] if kinds else CausalLM
    lines = _defaults(config, config_bases)
    if lines or config_bases != [DecoderConfig]:
        bases = ", ".join(base.__name__ for base in config_bases)
        head = ["@dataclass(kw_only=True)", f"class {name}Config({bases}):"]
        body = [f"    {line}".rstrip() for line in lines or ["pass"]]
        config_class = "\n".join([*head, *body]) + "\n\n\n"
        own_config = f"    config_cls = {name}Config\n"
        if MLAConfig in config_bases:
            own_config += "    attention_cls = MLA\n"
    else:
        config_class, own_config = "", ""
    imported: dict[str, set[str]] = {}
    for base in (*config_bases, model_base) if config_class else (model_base,):
        imported.setdefault(base.__module__, set()).add(base.__name__)
    if MLAConfig in config_bases:
        imported[MLA.__module__].add(MLA.__name__)
    for word in set(re.findall(r"\w+", config_class)):
        if word in _ALIASES:
            imported.setdefault(_ALIASES[word], set()).add(word)
    imports = "".join(
        f"from {module} import {', '.join(sorted(names))}\n"
        for module, names in sorted(imported.items())
    )
    dataclass_import = "from dataclasses import dataclass\n\n" if config_class else ""
    return (
        f'"""{name}: a standard decoder, as far as it is written."""\n\n'
        f"from __future__ import annotations\n\n{dataclass_import}{imports}\n\n{config_class}"
        f"class {architecture}({model_base.__name__}):\n"
        f'    architectures = ("{architecture}",)\n{own_config}'
    )


def _defaults(config: PreTrainedConfig, bases: list[type[DecoderConfig]]) -> list[str]:
    """Defaults of transformers that are not those of the classes it begins with."""
    given, rope = config.to_dict(), config.to_dict().get("rope_parameters") or {}
    lines = []
    for name in ("rope_theta", "partial_rotary_factor"):
        value = rope.get(name)
        if value is not None and value != getattr(bases[0], f"default_{name}"):
            lines.append(f"default_{name} = {value!r}")
    lines += [""] if lines else []
    heads = config.num_attention_heads
    usual = {"head_dim": config.hidden_size // heads, "num_key_value_heads": heads}
    seen: set[str] = set()
    for base in bases:
        for field in fields(base):
            value = given.get(field.name, MISSING)
            if (
                field.name not in seen
                and field.default is not MISSING
                and isinstance(value, bool | int | float | str)
                and value != field.default
                and value != usual.get(field.name)
            ):
                lines.append(f"{field.name}: {field.type} = {_literal(value)}")
            seen.add(field.name)
    return lines[:-1] if lines and lines[-1] == "" else lines


def _window_base(given: dict[str, Any]) -> type[WindowConfig] | None:
    if any(isinstance(value, dict) for value in (given.get("rope_parameters") or {}).values()):
        return LocalRopeConfig
    if "use_sliding_window" in given:
        return SwitchedWindowConfig
    return WindowConfig if "sliding_window" in given or "layer_types" in given else None


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str | list) else repr(value)


def _with_row(rows: str, case: str, architecture: str, small: PreTrainedConfig) -> str:
    """The table with one more row at its end."""
    sizes = {name: value for name, value in TINY.items() if value is not None}
    plain = type(small)(**sizes).to_dict()
    left_out = {*TINY, "rope_parameters", "architectures"}
    own = {
        name: value
        for name, value in small.to_dict().items()
        if name not in left_out and plain.get(name) != value
    }
    row = f'    "{case}": Case("{architecture}"),\n'
    if own:
        entries = ", ".join(f'"{name}": {_literal(value)}' for name, value in own.items())
        row = f'    "{case}": Case("{architecture}", {{{entries}}}),\n'
        if len(row) > 101:
            entries = entries.replace(', "', ',\n            "')
            row = (
                f'    "{case}": Case(\n        "{architecture}",\n'
                f"        {{\n            {entries},\n        }},\n    ),\n"
            )
    begin = rows.index("CASES: dict[str, Case] = {")
    end = rows.index("\n}\n", begin) + 1
    return rows[:end] + row + rows[end:]


def _imported(stem: str, architecture: str) -> type[CausalLM]:
    importlib.invalidate_caches()
    return getattr(importlib.import_module(f"axion.models.{stem}"), architecture)


def _relatives(config: PreTrainedConfig) -> tuple[str, ...]:
    """What transformers says of each class: which other family's it is, or its own."""
    package = sys.modules[type(config).__module__].__package__
    folder = Path(inspect.getfile(type(config))).parent
    stem = package.rpartition(".")[2]
    file = folder / f"modular_{stem}.py"
    if not file.exists():
        return ()
    found = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef) and not re.search(
            r"PreTrainedModel|Config|For[A-Z]|Model$", node.name
        ):
            bases = [ast.unparse(base) for base in node.bases]
            kind = "its own" if bases in ([], ["nn.Module"]) else ", ".join(bases)
            changed = any(isinstance(part, ast.FunctionDef) for part in node.body)
            changed = changed and kind != "its own"
            found.append(f"{node.name}: {kind}{', changed' if changed else ''}")
    return tuple(found)


def _tensors(
    small: PreTrainedConfig, model_class: type[CausalLM], undeclared: Collection[str]
) -> tuple[str, ...]:
    """What the checkpoint has and the file not; layers alike are told once.

    Args:
        undeclared: fields that the file does not read, and that would be refused.
    """
    given = {name: value for name, value in small.to_dict().items() if name not in undeclared}
    try:
        with torch.device("meta"):
            model = model_class(model_class.config_cls.from_dict(given))
    except ModelLoadError as error:
        return (error.message,)
    theirs = renamed_names(tiny.build(small), model)[""]
    lacking = theirs - checkpoint_names(model)[""]
    return tuple(sorted({re.sub(r"\.\d+\.", ".*.", name) for name in lacking}))


def _moving_fields(
    small: PreTrainedConfig, config_class: type[DecoderConfig]
) -> dict[str, bool | int | float]:
    """Fields that nobody reads, and that change what the reference computes when they change."""
    declared = {field.name for field in fields(config_class)}
    declared |= config_class._derive(small.to_dict())[1]
    prompt = torch.tensor([tiny.random_prompts()[1]])

    @torch.inference_mode()
    def logits(given: dict[str, Any]) -> torch.Tensor:
        return tiny.build(type(small)(**given))(prompt).logits

    given = small.to_dict()
    expected, found = logits(given), {}
    for name, value in given.items():
        if name in declared or is_harmless(name) or not isinstance(value, bool | int | float):
            continue
        other = not value if isinstance(value, bool) else value + (value or 1)
        try:
            moved = not torch.allclose(logits(given | {name: other}), expected, atol=1e-4)
        except Exception:  # whatever a configuration that nobody has ends in
            moved = True
        if moved:
            found[name] = value
    return found
