"""The shipped capability data speaks of features that there are, and says how it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

import axion.backends
from axion.backends.capabilities import shipped_capabilities
from axion.openai.features import FEATURES

FOLDER = Path(axion.backends.__file__).parent / "measured"
ENGINES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize("engine", ENGINES)
def test_features_are_named_as_requests_name_them(engine: str):
    known = shipped_capabilities(engine)
    assert known.engine == engine
    assert known.features.keys() <= FEATURES
    assert known.measured in ("conformance", "recorded", "source")
    assert bool(known.version) == (known.measured != "source")


def test_what_nobody_asked_is_not_trusted():
    assert shipped_capabilities("nobody").missing(["temperature"]) == ["temperature"]
    assert shipped_capabilities("max").missing(["n", "seed", "seed.0"]) == ["n", "seed.0"]
