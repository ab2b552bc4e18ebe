"""Sampling parameters: every bound holds and names its field; messages survive the wire."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.engine.messages import AddRequest, decode_to_engine, encode
from axion.errors import InvalidRequestError
from axion.types import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 2**31),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: 101.0}),
        ("seed", 2**63),
        ("stop", ("",)),
        ("stop", ("x",) * 17),
        ("stop_token_ids", (-1,)),
        ("allowed_token_ids", (1, -1)),
        ("bad_words_token_ids", ((1,), ())),
        ("bad_words_token_ids", ((1, -1),)),
        ("logprobs", 21),
    ],
)
def test_a_value_out_of_range_names_its_field(name: str, value: object):
    with pytest.raises(InvalidRequestError) as error:
        SamplingParams(**{name: value})
    assert error.value.param == name


def test_min_tokens_is_bounded_by_max_tokens():
    with pytest.raises(InvalidRequestError, match="min_tokens"):
        SamplingParams(max_tokens=3, min_tokens=4)


@given(
    prompt=st.lists(st.integers(0, 2**31 - 1), min_size=1),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100), max_size=3),
    stop=st.lists(st.text(min_size=1), max_size=4).map(tuple),
    salt=st.text(),
)
def test_a_request_survives_the_wire(prompt, temperature, seed, logit_bias, stop, salt):
    params = SamplingParams(temperature=temperature, seed=seed, logit_bias=logit_bias, stop=stop)
    request = AddRequest("id", prompt, params, salt)
    assert decode_to_engine(encode(request)) == request
