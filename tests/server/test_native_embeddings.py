"""Embeddings of the native engine over HTTP: the endpoint, limits and errors of fastembed's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from safetensors.torch import load_file, save_file

from axion.backends.base import ModelConfig
from axion.pooling.messages import EmbedRequest
from axion.pooling.native import NativeEmbedder
from axion.router.registry import ModelRegistry
from axion.settings import Settings
from axion.types import PoolingConfig, PoolingKind
from tests.embedding_models import save_bert, save_qwen3, write_modules
from tests.server.conftest import MODEL, LiveServer, ScriptedBackend

TEXTS = ["one", "two words", "a third text, and the longest of them all"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models: one that works, and two that do not."""
    folder = tmp_path_factory.mktemp("models")
    save_qwen3(folder / "qwen3")
    dense = save_bert(folder / "dense")
    write_modules(dense, "Transformer", "Pooling", "Dense")
    weights = save_bert(folder / "missing") / "model.safetensors"
    tensors = load_file(weights)
    del tensors["embeddings.LayerNorm.bias"]
    save_file(tensors, weights)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    models = ",".join(str(folder / name) for name in ("qwen3", "dense", "missing"))
    settings = Settings(model_name=MODEL, embedding_model=models, cpu_threads=1)
    registry = ModelRegistry()
    registry.add(ModelConfig(model_name=MODEL), ScriptedBackend())
    with LiveServer(settings, registry) as live:
        yield live


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    config = PoolingConfig(
        kind=PoolingKind.EMBEDDING, name="m", model=str(folder / "qwen3"), is_folder=True
    )
    embedder = NativeEmbedder(config)
    return embedder.compute(embedder.tokenize(EmbedRequest("r", TEXTS)))


def embed(client: openai.OpenAI, given: object, **fields: object) -> np.ndarray:
    answer = client.embeddings.create(model="qwen3", input=given, **fields)
    return np.array([item.embedding for item in answer.data])


def test_embeds_texts(client: openai.OpenAI, expected: np.ndarray):
    np.testing.assert_allclose(embed(client, TEXTS), expected, atol=1e-5)


def test_usage_counts_the_end_token(client: openai.OpenAI):
    for given, num_tokens in (("one", 4), ([4], 2)):
        answer = client.embeddings.create(model="qwen3", input=given)
        assert answer.usage.prompt_tokens == num_tokens


def test_dimensions(client: openai.OpenAI, expected: np.ndarray):
    cut = expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(embed(client, TEXTS, dimensions=8), cut, atol=1e-5)
    with pytest.raises(openai.BadRequestError) as error:
        embed(client, TEXTS, dimensions=33)
    assert error.value.param == "dimensions"


def test_what_is_too_long_is_refused_or_cut(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match=r"601 tokens.* 512") as error:
        embed(client, "x" * 600)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "input")
    cut = embed(client, "x" * 600, extra_body={"truncate_prompt_tokens": -1})
    np.testing.assert_allclose(cut, embed(client, "x" * 511), atol=1e-5)


def test_concurrent_requests(client: openai.OpenAI):
    texts = [f"text {'and so on ' * (i % 5)}{i}" for i in range(24)]
    together = embed(client, texts)
    with ThreadPoolExecutor(12) as pool:
        vectors = list(pool.map(lambda text: embed(client, text)[0], texts))
    np.testing.assert_allclose(vectors, together, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "reason"),
    [("dense", "asks for Transformer, Pooling, Dense"), ("missing", "LayerNorm.bias is missing")],
)
def test_a_model_that_cannot_be_served_is_unavailable_and_the_log_says_why(
    client: openai.OpenAI,
    folder: Path,
    model: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
):
    with pytest.raises(openai.APIStatusError) as error:
        client.embeddings.create(model=model, input="a")
    assert (error.value.status_code, error.value.code) == (503, "model_load_failed")
    assert "log" in error.value.message
    assert str(folder) not in error.value.message
    assert any(reason in record.getMessage() for record in caplog.records)
