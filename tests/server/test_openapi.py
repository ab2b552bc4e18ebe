"""The description says what the server does, and the page that shows it is harmless."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from axion.server.app import ROUTES
from axion.server.endpoint import ModelEndpoint
from axion.server.openapi import OPERATIONS, openapi_document
from tests.server.test_app import app, client

__all__ = ["app", "client"]

DOCUMENT = openapi_document()
METHODS = {"GET", "POST", "DELETE"}


def test_it_is_valid_openapi():
    assert DOCUMENT["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_route_is_described_and_nothing_else():
    routes = {
        (method.lower(), route.path_format)
        for route in ROUTES
        for method in (route.methods or set()) & METHODS
    }
    assert routes == OPERATIONS.keys()
    described = {(method, path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert described == routes


def test_the_types_described_are_those_that_validate():
    for route in ROUTES:
        if isinstance(route.endpoint, ModelEndpoint):
            operation = OPERATIONS["post", route.path_format]
            assert operation.request is route.endpoint.request_type
            described = DOCUMENT["paths"][route.path_format]["post"]["requestBody"]
            schema = described["content"]["application/json"]["schema"]
            assert schema["$ref"].rsplit("/", 1)[1] == operation.request.__name__


def test_every_field_of_a_request_is_described_with_its_bounds():
    schemas = DOCUMENT["components"]["schemas"]
    for operation in OPERATIONS.values():
        if operation.request is not None:
            schema = schemas[operation.request.__name__]
            assert schema["properties"].keys() == operation.request.model_fields.keys()
            assert schema["additionalProperties"] is False
    responses = schemas["ResponsesRequest"]["properties"]
    assert responses["tools"]["anyOf"][0]["maxItems"] == 128
    assert responses["top_logprobs"]["anyOf"][0]["maximum"] == 20
    assert "not supported" in responses["background"]["anyOf"][0]["description"] or (
        "no other value" in str(responses["background"])
    )


def test_streams_and_errors_are_described():
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
        responses = DOCUMENT["paths"][path]["post"]["responses"]
        events = responses["200"]["content"]["text/event-stream"]
        data = events["schema"]["properties"]["data"]
        content = data.get("contentSchema") or data["anyOf"][1]["contentSchema"]
        assert "$ref" in str(content)
        assert ("[DONE]" in str(data)) == path.endswith("completions")
        assert {"400", "404", "408", "413", "415", "429", "500", "503"} <= responses.keys()
        error = responses["400"]["content"]["application/json"]["schema"]["$ref"]
        kind = "MessagesErrorBody" if path == "/v1/messages" else "ErrorBody"
        assert error.endswith(f"/{kind}")


async def test_the_description_is_served(client: httpx.AsyncClient):
    response = await client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == DOCUMENT


class Page(HTMLParser):
    """What a page loads, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]


async def test_the_page_loads_nothing_from_elsewhere(client: httpx.AsyncClient):
    response = await client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(response.text)
    assert page.links == ["openapi.json"]
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert "://" not in response.text
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


async def test_the_page_writes_text_and_never_markup(client: httpx.AsyncClient):
    text = (await client.get("/docs")).text
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "on="):
        assert way not in text
    assert not re.search(r"\son\w+=", text)


def test_the_page_is_in_the_package():
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert '"server/docs.html"' in pyproject.read_text()


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
async def test_both_answer_without_a_model(path: str):
    from axion.router.registry import ModelRegistry
    from axion.server.app import create_app
    from axion.settings import Settings

    transport = httpx.ASGITransport(create_app(Settings(), ModelRegistry()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get(path)).status_code == 200
