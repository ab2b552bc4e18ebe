"""What the native engine serves, read from its files without importing torch."""

from __future__ import annotations

import ast
import importlib.resources
import json
from functools import cache
from importlib.metadata import entry_points
from typing import Any

PLUGIN_GROUP = "axion.models"


@cache
def native_architectures() -> frozenset[str] | None:
    """What the classes of `axion.models` that write text declare.

    None where there may be more: in plug-ins, or in a file with a fault, which the engine's process
    names when it is to serve a model of that file.
    """
    if entry_points(group=PLUGIN_GROUP):
        return None
    try:
        return _declared_by("axion.models", "CausalLM", "architectures")
    except SyntaxError:
        return None


@cache
def native_quantizations() -> frozenset[str]:
    """Names that config.json has for the methods of `axion.quantization`."""
    return _declared_by("axion.quantization", "StoredQuantized", "quant_methods")


def _declared_by(package: str, base: str, attribute: str) -> frozenset[str]:
    """The strings in `attribute = (...)` of the classes in a package that inherit from `base`."""
    classes: dict[str, ast.ClassDef] = {}
    for file in importlib.resources.files(package).iterdir():
        if file.name.endswith(".py"):
            tree = ast.parse(file.read_text(), file.name)
            classes |= {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found: set[str] = set()
    for cls in classes.values():
        if base in _ancestors(cls, classes):
            found.update(_declared(cls, attribute))
    return frozenset(found)


@cache
def fallback_architectures() -> frozenset[str]:
    """What has no such class, and gives transformers' answers by transformers' own.

    That is measured, not declared: see `docs/models.md`.
    """
    return frozenset(
        name for name, row in _catalog().items() if row["way"] == "fallback" and row["equal"]
    )


@cache
def refused_architectures() -> dict[str, str]:
    """What transformers has and the engine does not serve, and why: see `docs/models.md`."""
    return {name: row["reason"] for name, row in _catalog().items() if row["way"] == "refused"}


def _catalog() -> dict[str, Any]:
    text = importlib.resources.files("axion.models").joinpath("catalog.json").read_text()
    rows: dict[str, Any] = json.loads(text)["architectures"]
    return rows


def _ancestors(cls: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Names of the classes that a class inherits from, and its own."""
    found = {cls.name}
    for base in cls.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        found |= _ancestors(classes[name], classes) if name in classes else {name}
    return found


def _declared(cls: ast.ClassDef, attribute: str) -> list[str]:
    names: list[str] = []
    for node in cls.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == attribute:
            names += ast.literal_eval(node.value)
    return names
