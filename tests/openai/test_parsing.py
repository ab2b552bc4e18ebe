from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.errors import InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.common import GenerationRequest, sampling_params
from axion.openai.completions import CompletionRequest
from axion.openai.elsewhere import CHAT_FIELDS_ELSEWHERE, FIELDS_ELSEWHERE
from axion.openai.parsing import parse_request

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi."}]}


COMPLETION = {"model": "m", "prompt": "Hi."}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=20)
    | st.sampled_from(["user", "tool", "text", "function", "auto", "json_object", "5"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "function", "name", "arguments"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def bodies(model: type[GenerationRequest], base: dict[str, Any]) -> st.SearchStrategy[bytes]:
    names = st.sampled_from(sorted(model.model_fields)) | st.text(max_size=8)
    fields = st.dictionaries(names, json_values, max_size=5)
    return fields.map(lambda extra: json.dumps(base | extra).encode())


def fault(model: type[GenerationRequest], data: bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(model, data)
    return caught.value


def test_a_field_of_another_server_is_refused_with_what_to_send_here():
    for model, base, fields in (
        (ChatCompletionRequest, CHAT, CHAT_FIELDS_ELSEWHERE),
        (CompletionRequest, COMPLETION, FIELDS_ELSEWHERE),
    ):
        for name, advice in fields.items():
            error = fault(model, json.dumps(base | {name: {"num_ctx": 1}}).encode())
            assert (error.param, error.message) == (name, f"{name} is not a field here: {advice}.")


def test_nothing_is_advised_that_only_chats_have():
    for name in CHAT_FIELDS_ELSEWHERE.keys() - FIELDS_ELSEWHERE.keys() - {"echo"}:
        message = fault(CompletionRequest, json.dumps(COMPLETION | {name: 1}).encode()).message
        assert "is not a known field" in message


@given(st.data())
@pytest.mark.parametrize(
    ("model", "base"), [(ChatCompletionRequest, CHAT), (CompletionRequest, COMPLETION)]
)
def test_any_json_is_a_request_or_a_400(
    model: type[GenerationRequest], base: dict[str, Any], data: st.DataObject
):
    body = data.draw(bodies(model, base) | json_values.map(lambda v: json.dumps(v).encode()))
    message = ""
    try:
        request = parse_request(model, body)
        sampling_params(request, max_tokens=request.token_limit)
    except InvalidRequestError as error:
        message = error.message
    assert len(message) < 500
    assert message.isprintable()


@given(st.binary(max_size=50))
def test_any_bytes_are_a_request_or_a_400(data: bytes):
    fault(CompletionRequest, data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"not json",
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"n": ' + b"9" * 10_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_json_is_a_400_that_says_so(data: bytes):
    error = fault(CompletionRequest, data)
    assert "not valid JSON" in error.message
    assert error.param is None


@pytest.mark.parametrize("data", [b"5", b"[]", b"null", b'"text"'])
def test_a_body_that_is_no_object_is_a_400(data: bytes):
    assert "must be an object" in fault(CompletionRequest, data).message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", -1),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("max_tokens", -1),
        ("max_tokens", 2**63),
        ("max_tokens", 1.5),
        ("max_tokens", "5"),
        ("min_tokens", -1),
        ("n", 0),
        ("n", 10**6),
        ("n", True),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
        ("seed", 1.0),
        ("stop", 5),
        ("stop", ""),
        ("stop", ["a"] * 17),
        ("stop", "a" * 1025),
        ("stream", "true"),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("logit_bias", [1]),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"9999999999": 1}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [2**63]),
        ("ignore_eos", "no"),
        ("user", 5),
        ("model", ""),
    ],
)
def test_a_value_out_of_bounds_is_a_400_that_names_its_field(name: str, value: Any):
    for model, base in ((ChatCompletionRequest, CHAT), (CompletionRequest, COMPLETION)):
        error = fault(model, json.dumps(base | {name: value}).encode())
        assert error.param is not None
        assert error.param.startswith(name)
        assert error.message.startswith(error.param)


def test_an_infinite_number_is_refused():
    data = b'{"model": "m", "prompt": "a", "temperature": 1e999}'
    assert fault(CompletionRequest, data).param == "temperature"


def test_the_message_says_what_was_expected_and_what_came():
    error = fault(CompletionRequest, json.dumps(COMPLETION | {"temperature": 3}).encode())
    assert error.message == "temperature must be at most 2, got 3."
    error = fault(CompletionRequest, json.dumps(COMPLETION | {"n": "x"}).encode())
    assert error.message == 'n must be an integer, got "x".'


def test_an_unknown_field_is_refused_by_name_with_the_nearest_known_one():
    error = fault(CompletionRequest, json.dumps(COMPLETION | {"temprature": 1}).encode())
    assert error.param == "temprature"
    assert "do you mean temperature?" in error.message


def test_an_error_repeats_little_of_what_was_sent():
    for extra in ({"x" * 5000: 1}, {"user": "x" * 5000, "n": "x" * 5000}, {"n": int("9" * 4000)}):
        error = fault(CompletionRequest, json.dumps(COMPLETION | extra).encode())
        assert len(error.message) < 300
    error = fault(CompletionRequest, json.dumps(COMPLETION | {"a\nb\x1b": 1}).encode())
    assert error.message.isprintable()


def test_a_million_faults_are_as_one():
    many = {f"k{i}": 1 for i in range(1_000_000)}
    assert fault(CompletionRequest, json.dumps(COMPLETION | many).encode()).param == "k0"
    wrong = json.dumps(COMPLETION | {"prompt": [-1] * 1_000_000}).encode()
    assert fault(CompletionRequest, wrong).param == "prompt[0]"
