"""Requests made at random from `/openapi.json`: no 5xx, and every answer is as described there.

`FUZZ_CASES` is how many there are for each operation; `make fuzz` sends some thousands.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axion.openai.tokenize import TokenizeRequest
from axion.server.openapi import OPERATIONS, openapi_document
from tests.server.test_responses import DEMO, create
from tests.server.test_streams import NAME, EchoServer

if TYPE_CHECKING:
    from schemathesis import Case
    from schemathesis.schemas import BaseSchema

NUM_CASES = int(os.environ.get("FUZZ_CASES", "0"))
# Without these a random request is rarely more than refused, or has an answer that never ends.
MODELS = {"/v1/embeddings": "e"} | {
    path: "r" for _, path in OPERATIONS if path.endswith(("rerank", "score"))
}
STEADY: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"max_tokens": 8, "max_completion_tokens": None},
    "/v1/completions": {"max_tokens": 8},
    "/v1/responses": {"max_output_tokens": 8},
    "/v1/messages": {"max_tokens": 8},
}
# A text to tokenise goes with none of these, which the schema cannot say.
OF_CONVERSATIONS = TokenizeRequest.model_fields.keys() - {
    *("model", "prompt", "add_special_tokens", "return_token_strs")
}


@pytest.fixture(scope="module")
def echo(sentence_model: Path, cross_encoder: Path) -> Iterator[EchoServer]:
    pooling = {"embedding_model": f"e={sentence_model}", "rerank_model": f"r={cross_encoder}"}
    with EchoServer(DEMO, cpu_threads=1, **pooling) as server:
        yield server


@pytest.fixture(scope="module")
def schema() -> BaseSchema:
    import schemathesis  # takes seconds, which other tests need not

    return schemathesis.openapi.from_dict(openapi_document())


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_random_requests_are_answered_as_described(
    echo: EchoServer, schema: BaseSchema, method: str, path: str
):
    from schemathesis import GenerationMode, checks
    from schemathesis.specs.openapi import checks as openapi_checks

    operation = schema[path][method.upper()]
    modes = list(GenerationMode) if method == "post" else [GenerationMode.POSITIVE]
    cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])
    statuses: Counter[int] = Counter()

    # The same requests every time, unless it is a longer run that is there to find new ones.
    @settings(
        max_examples=NUM_CASES or (25 if method == "post" else 6),
        derandomize=not NUM_CASES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Case) -> None:
        if isinstance(case.body, dict):
            case.body |= {"model": MODELS.get(path, NAME), **STEADY.get(path, {})}
            if path.endswith("/tokenize") and statuses.total() % 2:
                case.body["prompt"] = str(case.body.get("prompt"))
                for name in OF_CONVERSATIONS & case.body.keys():
                    del case.body[name]
            if path in STEADY and statuses.total() % 3 == 0:
                case.body["stream"] = True
        if "{id}" in path and statuses.total() % 2:
            case.path_parameters["id"] = NAME if "models" in path else create(echo).id
            if statuses.total() % 4 == 1:  # a random query is hardly ever one that is taken
                case.query = {}
        response = case.call(base_url=echo.url)
        statuses[response.status_code] += 1
        case.validate_response(
            response,
            checks=[
                checks.not_a_server_error,
                openapi_checks.status_code_conformance,
                openapi_checks.content_type_conformance,
                openapi_checks.response_headers_conformance,
                openapi_checks.response_schema_conformance,
            ],
        )

    check()
    echo.wait_until_idle()
    assert 200 in statuses, statuses
    assert method != "post" or 400 in statuses, statuses
