from __future__ import annotations

import pytest

from axion.backends.upstream.faults import Faults
from axion.errors import (
    AxionError,
    ContextLengthExceededError,
    EngineUnavailableError,
    InvalidRequestError,
    QueueFullError,
    RequestTooLargeError,
)
from tests.backends.upstream.harness import STYLES, chat_request, take


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "top_k must be at least 1", InvalidRequestError),
        (400, "This model's maximum context length is 9 tokens.", ContextLengthExceededError),
        (413, "Too large", RequestTooLargeError),
        (422, "Field required", InvalidRequestError),
        (429, "Busy", QueueFullError),
        (401, "Incorrect key secret", EngineUnavailableError),
        (404, "The model does not exist", EngineUnavailableError),
        (502, "Bad gateway", EngineUnavailableError),
        (503, "Loading", EngineUnavailableError),
    ],
)
async def test_an_error_of_the_engine_has_its_meaning(
    fake, upstream, style: str, status: int, message: str, kind: type[AxionError]
):
    up = upstream(fake(style, fault="status", status=status, message=message), api_key="secret")
    _, error = await take(up.chat(chat_request(), "1"))
    assert type(error) is kind
    if kind is QueueFullError:
        assert error.headers == {"Retry-After": "7"}
    elif isinstance(error, InvalidRequestError):
        assert error.message == f"{message} (engine: fake)"


@pytest.mark.parametrize("fault", ["not_http", "endless_head", "status"])
async def test_a_failure_before_the_answer_is_the_engines_fault(fake, upstream, fault: str):
    chunks, error = await take(upstream(fake(fault=fault)).chat(chat_request(), "1"))
    assert (chunks, type(error)) == ([], EngineUnavailableError)


async def test_an_error_in_the_stream_may_be_the_requests(fake, upstream):
    server = fake(fault="error_event", status=400, message="bad")
    _, error = await take(upstream(server).chat(chat_request(), "1"))
    assert isinstance(error, InvalidRequestError)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b'{"error": {"message": "no", "param": "n", "code": 400}}', "no", "n"),
        (b'{"detail": [{"loc": ["body", "n"], "msg": "too big"}]}', "too big", "n"),
        (b'{"detail": "no"}', "no", None),
        (b'{"error": "no"}', "no", None),
        (b'{"object": "error", "message": "no", "code": 400}', "no", None),
        (b"no", "no", None),
        (b"\xff[]", "\ufffd[]", None),
        (
            b'{"error": {"message": "1 error\\n a For further information visit x", "param": ""}}',
            "1 error a",
            None,
        ),
        (b"[]", "The request was refused.", None),
        (b'{"error": {"message": "/models/llama-3 is wrong"}}', "m is wrong", None),
        (b'{"error": {"message": "see https://h:1/a?b=secret"}}', "see …", None),
        (
            b'{"error": {"message": "in ~/.cache/hub/x.py line 3\\n\\nand"}}',
            "in … line 3 and",
            None,
        ),
        (b'{"error": {"message": "key secret is wrong"}}', "key … is wrong", None),
        (b'{"error": {"message": "Bad. Traceback (most recent call last): x"}}', "Bad.", None),
    ],
)
def test_the_engines_words_come_without_what_is_its_own(
    body: bytes, message: str, param: str | None
):
    faults = Faults(engine="e", upstream_model="/models/llama-3", served_name="m", api_key="secret")
    error = faults.of_answer(400, body, {})
    assert (error.message, error.param) == (f"{message} (engine: e)", param)
