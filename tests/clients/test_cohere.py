"""Cohere's client, for reranking: version 2 of its API, and version 1 with objects."""

from __future__ import annotations

from collections.abc import Iterator

import cohere
import httpx
import pytest

QUERY = "how to log in"
DOCUMENTS = ["first document", "a second, longer document", "third"]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    # A client of our own, because cohere's does not close the one that it makes.
    with httpx.Client(timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(url: str, http: httpx.Client) -> cohere.ClientV2:
    return cohere.ClientV2(api_key="none", base_url=url, httpx_client=http)


def test_rerank(client: cohere.ClientV2):
    answer = client.rerank(model="cross", query=QUERY, documents=DOCUMENTS)
    scores = [result.relevance_score for result in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result.index for result in answer.results) == [0, 1, 2]
    assert answer.id
    assert answer.meta.api_version.version
    assert answer.meta.tokens.input_tokens > 20


def test_the_best_of_short_documents(client: cohere.ClientV2):
    every = client.rerank(model="cross", query=QUERY, documents=DOCUMENTS)
    best = client.rerank(
        model="cross", query=QUERY, documents=DOCUMENTS, top_n=1, max_tokens_per_doc=100, priority=0
    )
    assert best.results == every.results[:1]


def test_version_1_gives_documents_back(url: str, http: httpx.Client):
    answer = cohere.Client(api_key="none", base_url=url, httpx_client=http).rerank(
        model="cross",
        query=QUERY,
        documents=[{"text": text} for text in DOCUMENTS],
        rank_fields=["text"],
        return_documents=True,
    )
    assert len(answer.results) == 3
    assert all(r.document.text == DOCUMENTS[r.index] for r in answer.results)


async def test_rerank_on_an_event_loop(url: str):
    async with httpx.AsyncClient(timeout=60) as http:
        client = cohere.AsyncClientV2(api_key="none", base_url=url, httpx_client=http)
        answer = await client.rerank(model="cross", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert len(answer.results) == 2


def test_errors_are_the_clients_own(client: cohere.ClientV2):
    with pytest.raises(cohere.NotFoundError) as error:
        client.rerank(model="nothing", query=QUERY, documents=DOCUMENTS)
    assert "cross" in error.value.body["error"]["message"]
    with pytest.raises(cohere.BadRequestError) as error:
        client.rerank(model="cross", query=QUERY, documents=DOCUMENTS, priority=7)
    assert error.value.body["error"]["param"] == "priority"
