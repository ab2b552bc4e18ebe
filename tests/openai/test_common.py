from __future__ import annotations

import json
from typing import Any

import pytest

from axion.errors import InvalidRequestError
from axion.openai.common import (
    sampling_params,
)
from axion.openai.completions import CompletionRequest
from axion.openai.parsing import parse_request

COMPLETION = {"model": "m", "prompt": "Hi."}


def test_null_is_the_same_as_absent():
    optional = [
        name for name, field in CompletionRequest.model_fields.items() if not field.is_required()
    ]
    request = parse_request(
        CompletionRequest, json.dumps(COMPLETION | dict.fromkeys(optional)).encode()
    )
    assert sampling_params(request, max_tokens=5) == sampling_params(
        parse_request(CompletionRequest, json.dumps(COMPLETION).encode()), max_tokens=5
    )


def test_sampling_fields_reach_the_engine():
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.3,
        "min_tokens": 2,
        "seed": -5,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "stop": ["a", "b"],
        "stop_token_ids": [1, 2],
        "logit_bias": {"7": -100, "0": 1.5},
        "logprobs": 3,
    }
    params = sampling_params(
        parse_request(CompletionRequest, json.dumps(COMPLETION | fields).encode()), max_tokens=9
    )
    assert params.max_tokens == 9
    assert params.stop == ("a", "b")
    assert params.stop_token_ids == (1, 2)
    assert params.logit_bias == {7: -100, 0: 1.5}
    for name in fields.keys() - {"stop", "stop_token_ids", "logit_bias"}:
        assert getattr(params, name) == fields[name]


def test_the_request_comes_before_the_models_defaults():
    request = parse_request(CompletionRequest, json.dumps(COMPLETION | {"top_k": -1}).encode())
    params = sampling_params(request, max_tokens=1, defaults={"temperature": 0.6, "top_k": 20})
    assert (params.temperature, params.top_k, params.top_p) == (0.6, 0, 1.0)


def test_min_tokens_above_max_tokens_is_a_400():
    request = parse_request(CompletionRequest, json.dumps(COMPLETION | {"min_tokens": 5}).encode())
    with pytest.raises(InvalidRequestError) as caught:
        sampling_params(request, max_tokens=4)
    assert caught.value.param == "min_tokens"
