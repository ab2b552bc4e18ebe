"""The shapes of real models: `shapes.json` has the config.json of each."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from axion.errors import ModelNotFoundError


@cache
def shapes() -> dict[str, dict[str, Any]]:
    """The config.json of each shape, by its name."""
    table: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_name("shapes.json").read_text()
    )
    return table


def shape_config(name: str) -> dict[str, Any]:
    """Raises:
    ModelNotFoundError: there is none of that name.
    """
    if name not in shapes():
        raise ModelNotFoundError(
            f"There is no shape {name[:80]!r}. There are {', '.join(shapes())}."
        )
    return shapes()[name]


def shape_folder(name: str) -> Path:
    """Where a checkpoint of the shape is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "axion" / "shapes" / name
