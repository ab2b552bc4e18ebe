"""The shipped capability data speaks of features that there are, and says how it is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import axion.backends
from axion.backends.capabilities import shipped_capabilities
from axion.openai import features as module
from axion.openai.chat import ChatCompletionRequest
from axion.openai.completions import CompletionRequest
from axion.openai.features import WITHOUT_FEATURE

FOLDER = Path(axion.backends.__file__).parent / "measured"
ENGINES = sorted(path.stem for path in FOLDER.glob("*.json"))
FIELDS = (
    ChatCompletionRequest.model_fields.keys() | CompletionRequest.model_fields.keys()
) - WITHOUT_FEATURE
# Names that the module spells out, and those that it makes of a constraint.
SPELLED = set(re.findall(r'yield "([\w.]+)"|"(seed\.0)"', Path(module.__file__).read_text()))
NAMES = FIELDS | {name for pair in SPELLED for name in pair if name}
NAMES |= {f"tool_choice.{word}" for word in ("none", "required", "named", "allowed_tools")}
NAMES |= {f"response_format.{kind}" for kind in ("json_object", "json_schema")}
NAMES |= {
    f"structured_outputs.{kind}" for kind in ("json", "json_object", "regex", "choice", "grammar")
}
NAMES |= {"seed.0"}


@pytest.mark.parametrize("engine", ENGINES)
def test_features_are_named_as_requests_name_them(engine: str):
    known = shipped_capabilities(engine)
    assert known.engine == engine
    assert known.features.keys() - NAMES == set()
    assert known.measured in ("conformance", "recorded", "source")
    assert bool(known.version) == (known.measured != "source")


def test_what_nobody_asked_is_not_trusted():
    assert shipped_capabilities("nobody").missing(["temperature"]) == ["temperature"]
    assert shipped_capabilities("max").missing(["n", "seed", "seed.0"]) == ["n", "seed.0"]
