from __future__ import annotations

import json

import pytest
from pydantic import BaseModel

from axion.openai.chat import ChatCompletionRequest
from axion.openai.common import (
    PromptTokensDetails,
    Usage,
)
from axion.openai.completions import CompletionRequest


def test_a_field_with_a_default_is_in_the_json_only_when_given():
    usage = Usage(
        prompt_tokens=1,
        completion_tokens=2,
        total_tokens=3,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
    )
    assert json.loads(usage.to_json()) == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("model", [ChatCompletionRequest, CompletionRequest, Usage])
def test_every_type_has_a_json_schema(model: type[BaseModel]):
    schema = model.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == model.model_fields.keys()
