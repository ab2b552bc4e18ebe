"""Embeddings, reranking and scores over HTTP, with real models and the clients people use."""

from __future__ import annotations

import base64
import json
import math
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fastembed.rerank.cross_encoder import TextCrossEncoder
from prometheus_client.parser import text_string_to_metric_families

from axion.backends.base import ModelConfig
from axion.openai.embeddings import EmbeddingList
from axion.openai.rerank import RerankAnswer, ScoreList
from axion.router.registry import ModelRegistry
from axion.settings import Settings
from tests.server.conftest import MODEL, LiveServer, ScriptedBackend

QUERY = "how to log in"
DOCUMENTS = ["first document", {"text": "a second, longer document"}, "third"]
RERANK: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def server(sentence_model: Path, cross_encoder: Path) -> Iterator[LiveServer]:
    settings = Settings(
        model_name=MODEL,
        embedding_model=f"minilm={sentence_model}",
        rerank_model=f"cross={cross_encoder}",
        cpu_threads=1,
        max_request_bytes=4 * 2**20,
    )
    registry = ModelRegistry()
    registry.add(ModelConfig(model_name=MODEL), ScriptedBackend())
    with LiveServer(settings, registry) as live:
        yield live


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def openai_client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def embed(client: httpx.Client, given: Any, **fields: Any) -> np.ndarray:
    response = client.post("/v1/embeddings", json={"input": given, **fields})
    assert response.status_code == 200, response.text
    answer = EmbeddingList.model_validate_json(response.content)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data])


def assert_refused(response: httpx.Response, param: str | None, status: int = 400) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert "/" not in error["message"].replace("/v1/", "")
    return error["message"]


class TestOpenAIClient:
    """It asks for base64 by itself, and decodes it."""

    def test_embeds_texts(self, openai_client: openai.OpenAI, client: httpx.Client):
        answer = openai_client.embeddings.create(model="minilm", input=["one", "two words"])
        assert (answer.model, answer.object) == ("minilm", "list")
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)
        vectors = np.array([item.embedding for item in answer.data])
        assert vectors.shape == (2, 384)
        np.testing.assert_allclose(vectors, embed(client, ["one", "two words"]), atol=1e-6)

    def test_float_is_the_same_as_base64(self, openai_client: openai.OpenAI):
        as_float, as_base64 = (
            openai_client.embeddings.create(
                model="minilm", input="hello", encoding_format=encoding_format
            )
            .data[0]
            .embedding
            for encoding_format in ("float", "base64")
        )
        decoded = struct.unpack("<384f", base64.b64decode(as_base64))
        assert list(decoded) == as_float

    def test_dimensions(self, openai_client: openai.OpenAI, client: httpx.Client):
        answer = openai_client.embeddings.create(model="minilm", input="hello", dimensions=64)
        whole = embed(client, "hello")[0, :64]
        np.testing.assert_allclose(
            answer.data[0].embedding, whole / np.linalg.norm(whole), atol=1e-6
        )

    def test_token_ids(self, openai_client: openai.OpenAI, client: httpx.Client):
        answer = openai_client.embeddings.create(model="minilm", input=[[7592], [7592, 2088]])
        vectors = [item.embedding for item in answer.data]
        np.testing.assert_allclose(vectors, embed(client, ["hello", "hello world"]), atol=1e-6)
        assert openai_client.embeddings.create(model="minilm", input=[7592]).usage.total_tokens == 3

    def test_lists_the_models_after_those_that_chat(self, openai_client: openai.OpenAI):
        assert [model.id for model in openai_client.models.list()] == [MODEL, "minilm", "cross"]
        assert openai_client.models.retrieve("minilm").id == "minilm"


class TestEmbeddings:
    def test_the_model_may_be_left_out(self, client: httpx.Client):
        np.testing.assert_array_equal(embed(client, "a"), embed(client, "a", model="minilm"))

    def test_a_large_answer_is_whole_and_in_order(self, client: httpx.Client):
        texts = [f"number {i}" for i in range(200)]
        vectors = embed(client, texts, user="somebody")
        np.testing.assert_allclose(vectors[137:138], embed(client, "number 137"), atol=1e-5)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({}, "input"),
            ({"input": ""}, "input"),
            ({"input": []}, "input"),
            ({"input": [[]]}, "input[0]"),
            ({"input": ["a", ""]}, "input[1]"),
            ({"input": ["a", 1]}, "input[1]"),
            ({"input": [1, "a"]}, "input[1]"),
            ({"input": [-1]}, "input[0]"),
            ({"input": [2**63]}, "input[0]"),
            ({"input": [[1], [1.5]]}, "input[1][0]"),
            ({"input": None}, "input"),
            ({"input": {"text": "a"}}, "input"),
            ({"input": ["a"] * 2049}, "input"),
            ({"input": "a", "model": ""}, "model"),
            ({"input": "a", "model": 5}, "model"),
            ({"input": "a", "dimensions": 0}, "dimensions"),
            ({"input": "a", "dimensions": -1}, "dimensions"),
            ({"input": "a", "dimensions": 385}, "dimensions"),
            ({"input": "a", "dimensions": 2**63}, "dimensions"),
            ({"input": "a", "dimensions": 1.5}, "dimensions"),
            ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
            ({"input": "a", "truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
            ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
            ({"input": "a", "user": 5}, "user"),
            ({"input": "a", "unknown": 5}, "unknown"),
            ({"input": [40000]}, "input"),
            ({"input": "word " * 600}, "input"),
            ({"input": "a", "model": "cross"}, "model"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_a_field_that_is_wrong_is_named(
        self, client: httpx.Client, fields: dict[str, Any], param: str
    ):
        assert_refused(client.post("/v1/embeddings", json=fields), param)

    def test_a_lone_surrogate_is_refused(self, client: httpx.Client):
        body = b'{"input": "\\ud800"}'
        assert_refused(client.post("/v1/embeddings", content=body), None)

    def test_what_is_too_long_may_be_cut(self, client: httpx.Client):
        cut = embed(client, "word " * 600, truncate_prompt_tokens=-1)
        np.testing.assert_allclose(cut, embed(client, "word " * 510), atol=1e-6)

    @pytest.mark.parametrize("model", ["nobody", "../minilm", "/etc", "%2e%2e", "a\x00"])
    def test_row_17_other_models_are_not_found(self, client: httpx.Client, model: str):
        body = {"input": "a", "model": model}
        response = client.post("/v1/embeddings", json=body)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert "minilm" in response.json()["error"]["message"]

    def test_a_model_that_cannot_be_had_is_unavailable(
        self, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("FASTEMBED_CACHE_PATH", str(tmp_path))
        body = {"input": "a", "model": "BAAI/bge-small-en-v1.5"}
        response = client.post("/v1/embeddings", json=body)
        assert response.status_code == 503
        error = response.json()["error"]
        assert error["code"] == "model_load_failed"
        assert "EMBEDDING_MODEL" in error["message"]
        assert str(tmp_path) not in error["message"]
        assert int(response.headers["retry-after"]) > 0

    def test_32_concurrent_requests_share_batches(self, client: httpx.Client, server: LiveServer):
        before = stats(client, "minilm")
        texts = [f"text number {i} of those that are sent together" for i in range(32)]
        with ThreadPoolExecutor(32) as pool:
            vectors = list(pool.map(lambda text: embed(client, text)[0], texts))
        after = stats(client, "minilm")
        assert after["num_texts"] - before["num_texts"] == 32
        assert after["num_batches"] - before["num_batches"] < 32
        np.testing.assert_allclose(vectors, embed(client, texts), atol=1e-5)

    def test_a_client_that_leaves_takes_its_texts_along(
        self, client: httpx.Client, server: LiveServer
    ):
        before = stats(client, "minilm")
        body = json.dumps({"input": ["words " * 100] * 2000}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        with server.connect() as connection:
            connection.sendall(head.encode() + body)
            server.wait_for(lambda: server.state.pooling.health()[0].stats.num_waiting > 1000, 30)
        server.wait_for(lambda: server.state.pooling.health()[0].stats.num_waiting == 0, 30)
        assert stats(client, "minilm")["num_dropped"] - before["num_dropped"] > 1000
        server.wait_for(lambda: server.state.num_in_flight == 0)


def stats(client: httpx.Client, name: str) -> dict[str, int]:
    models = client.get("/health").json()["pooling"]
    (found,) = (model for model in models if model["name"] == name)
    return found["stats"]


class TestRerank:
    @pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
    def test_answers_in_the_shape_of_jina_and_cohere(self, client: httpx.Client, path: str):
        response = client.post(path, json=RERANK)
        assert response.status_code == 200
        answer = response.json()
        RerankAnswer.model_validate(answer)
        assert answer["model"] == "cross"
        assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2]
        assert all(result.keys() == {"index", "relevance_score"} for result in answer["results"])
        num_tokens = answer["usage"]["total_tokens"]
        assert answer["usage"]["prompt_tokens"] == num_tokens > 20
        assert answer["meta"]["tokens"] == {"input_tokens": num_tokens}

    def test_best_first_with_the_scores_of_fastembed(
        self, client: httpx.Client, cross_encoder: Path
    ):
        texts = [d if isinstance(d, str) else d["text"] for d in DOCUMENTS]
        if not any("test/http" in m["model"] for m in TextCrossEncoder.list_supported_models()):
            from fastembed.common.model_description import ModelSource

            TextCrossEncoder.add_custom_model(
                "test/http", sources=ModelSource(url="nowhere"), model_file="model.onnx"
            )
        direct = TextCrossEncoder("test/http", specific_model_path=str(cross_encoder))
        logits = list(direct.rerank(QUERY, texts))
        results = client.post("/v1/rerank", json=RERANK).json()["results"]
        scores = [result["relevance_score"] for result in results]
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx(
            [1 / (1 + math.exp(-logits[result["index"]])) for result in results], abs=1e-5
        )
        raw = client.post("/v1/rerank", json={**RERANK, "use_activation": False}).json()["results"]
        assert [result["relevance_score"] for result in raw] == pytest.approx(
            sorted(logits, reverse=True), abs=1e-5
        )

    def test_top_n_and_documents(self, client: httpx.Client):
        every = client.post("/v1/rerank", json={**RERANK, "return_documents": True}).json()
        best = client.post(
            "/v1/rerank", json={**RERANK, "return_documents": True, "top_n": 2}
        ).json()
        assert best["results"] == every["results"][:2]
        texts = {result["index"]: result["document"]["text"] for result in every["results"]}
        assert texts == {0: "first document", 1: "a second, longer document", 2: "third"}
        assert len(client.post("/rerank", json={**RERANK, "top_n": 9}).json()["results"]) == 3

    def test_what_cohere_has_by_default_may_be_said(self, client: httpx.Client):
        said = client.post("/v2/rerank", json={**RERANK, "rank_fields": ["text"], "priority": 0})
        unsaid = client.post("/v2/rerank", json=RERANK)
        assert said.json()["results"] == unsaid.json()["results"]

    def test_equal_documents_keep_their_order(self, client: httpx.Client):
        body = {"query": "q", "documents": ["same"] * 20}
        results = client.post("/v1/rerank", json=body).json()["results"]
        assert [result["index"] for result in results] == list(range(20))

    def test_long_documents_are_cut_unless_told_otherwise(self, client: httpx.Client):
        body = {"query": "q", "documents": ["word " * 2000, "", "short"]}
        answer = client.post("/v1/rerank", json=body).json()
        assert 512 < answer["usage"]["total_tokens"] < 512 + 20
        answer = client.post("/v1/rerank", json={**body, "max_tokens_per_doc": 10}).json()
        assert answer["usage"]["total_tokens"] < 40

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"documents": None}, "documents"),
            ({"documents": []}, "documents"),
            ({"documents": "text"}, "documents"),
            ({"documents": ["a"] * 2049}, "documents"),
            ({"documents": ["a", 1]}, "documents[1]"),
            ({"documents": [{"image": "x"}]}, "documents[0].image"),
            ({"documents": [{}]}, "documents[0].text"),
            ({"query": ""}, "query"),
            ({"query": ["a"]}, "query"),
            ({"top_n": 0}, "top_n"),
            ({"top_n": -1}, "top_n"),
            ({"top_n": 2**63}, "top_n"),
            ({"return_documents": "yes"}, "return_documents"),
            ({"rank_fields": ["title"]}, "rank_fields"),
            ({"rank_fields": ["text", "title"]}, "rank_fields"),
            ({"relevant_spans": {"enabled": True}}, "relevant_spans"),
            ({"priority": 1}, "priority"),
            ({"max_chunks_per_doc": 3}, "max_chunks_per_doc"),
            ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
            ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
            ({"model": "minilm"}, "model"),
            ({"nonsense": 1}, "nonsense"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_a_field_that_is_wrong_is_named(
        self, client: httpx.Client, fields: dict[str, Any], param: str
    ):
        assert_refused(client.post("/v1/rerank", json=RERANK | fields), param)


class TestScore:
    def score(
        self, client: httpx.Client, one: Any, two: Any, path: str = "/v1/score"
    ) -> list[float]:
        response = client.post(path, json={"text_1": one, "text_2": two})
        assert response.status_code == 200, response.text
        answer = ScoreList.model_validate_json(response.content)
        assert [item.index for item in answer.data] == list(range(len(answer.data)))
        return [item.score for item in answer.data]

    def test_one_with_one_one_with_each_and_each_with_its_counterpart(self, client: httpx.Client):
        (alone,) = self.score(client, "a", "x")
        assert 0 < alone < 1
        one_with_each = self.score(client, "a", ["x", "y"], path="/score")
        assert one_with_each[0] == pytest.approx(alone, abs=1e-6)
        pairs = self.score(client, ["a", "a"], ["x", "y"])
        assert pairs == pytest.approx(one_with_each, abs=1e-6)

    def test_equals_rerank(self, client: httpx.Client):
        texts = ["first", "second"]
        results = client.post("/rerank", json={"query": "q", "documents": texts}).json()["results"]
        ranked = {result["index"]: result["relevance_score"] for result in results}
        assert self.score(client, "q", texts) == pytest.approx([ranked[0], ranked[1]], abs=1e-6)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"text_1": ["a", "b"]}, "text_1"),
            ({"text_1": ["a", "b"], "text_2": ["x", "y", "z"]}, "text_1"),
            ({"text_2": []}, "text_2"),
            ({"text_2": ["x", ""]}, "text_2[1]"),
            ({"text_2": 5}, "text_2"),
            ({"text_2": "word " * 600}, "text_2"),
            ({"text_2": ["x", "word " * 600]}, "text_2[1]"),
        ],
    )
    def test_a_field_that_is_wrong_is_named(
        self, client: httpx.Client, fields: dict[str, Any], param: str
    ):
        body = {"text_1": "a", "text_2": "x"} | fields
        assert_refused(client.post("/v1/score", json=body), param)


def test_health_and_metrics_show_the_models(client: httpx.Client):
    embed(client, ["a", "b"])
    models = {model["name"]: model for model in client.get("/health").json()["pooling"]}
    assert models["minilm"]["state"] == "ready"
    assert models["minilm"]["info"] == {"dim": 384, "max_length": 512}
    families = {
        family.name: family
        for family in text_string_to_metric_families(client.get("/metrics").text)
    }
    (texts,) = (
        sample.value
        for sample in families["axion_pooling_texts"].samples
        if sample.labels == {"model": "minilm"}
    )
    sizes = [
        sample
        for sample in families["axion_pooling_batch_size"].samples
        if sample.labels["model"] == "minilm"
    ]
    buckets = [sample.value for sample in sizes if sample.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    (total,) = (sample.value for sample in sizes if sample.name.endswith("_sum"))
    assert total == texts >= 2
    assert {"axion_pooling_waiting_texts", "axion_pooling_tokens"} <= families.keys()


def test_chat_goes_on_while_embeddings_are_computed(client: httpx.Client):
    done = threading.Event()

    def run() -> None:
        embed(client, ["words " * 60] * 100)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    num_answers = 0
    while not done.is_set():
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        num_answers += 1
    thread.join()
    assert num_answers > 3
