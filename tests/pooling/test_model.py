"""Embeddings and scores are fastembed's own, and torch's, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from fastembed.rerank.cross_encoder import TextCrossEncoder
from transformers import AutoTokenizer

from axion.errors import ContextLengthExceededError, InvalidRequestError
from axion.pooling.embedder import Embedder
from axion.pooling.messages import MODEL_LIMIT, EmbedRequest, RerankRequest
from axion.pooling.reranker import Reranker
from axion.types import PoolingConfig, PoolingKind
from tests.onnx_models import load_sentence_model, random_cross_encoder

TEXTS = [
    "How do I reset my password?",
    "Recover a lost login",
    "Bananas are yellow.",
    "",
    "Grüße aus Köln, 東京 and Привет 👋",
    "one two three " * 40,
]
LONG = "word " * 600
QUERY = "a question about logins"


@pytest.fixture(scope="module")
def embedder(sentence_model: Path) -> Embedder:
    return Embedder(config(PoolingKind.EMBEDDING, sentence_model))


@pytest.fixture(scope="module")
def reranker(cross_encoder: Path) -> Reranker:
    return Reranker(config(PoolingKind.RERANK, cross_encoder))


@pytest.fixture(scope="module")
def direct_embedder(sentence_model: Path) -> TextEmbedding:
    TextEmbedding.add_custom_model(
        "test/minilm",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(url="nowhere"),
        dim=384,
        model_file="model.onnx",
    )
    return TextEmbedding("test/minilm", specific_model_path=str(sentence_model))


@pytest.fixture(scope="module")
def direct_reranker(cross_encoder: Path) -> TextCrossEncoder:
    TextCrossEncoder.add_custom_model(
        "test/cross", sources=ModelSource(url="nowhere"), model_file="model.onnx"
    )
    return TextCrossEncoder("test/cross", specific_model_path=str(cross_encoder))


def config(kind: PoolingKind, folder: Path) -> PoolingConfig:
    return PoolingConfig(kind=kind, name="m", model=str(folder), is_folder=True, num_threads=1)


def embed(embedder: Embedder, inputs: list, **options) -> np.ndarray:
    return embedder.compute(embedder.tokenize(EmbedRequest("r", inputs, **options)))


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=2e-6, rtol=0)


class TestEmbedder:
    def test_knows_its_size(self, embedder: Embedder):
        assert (embedder.dim, embedder.max_length) == (384, 512)

    def test_equals_fastembed_called_directly(
        self, embedder: Embedder, direct_embedder: TextEmbedding
    ):
        vectors = embed(embedder, TEXTS)
        assert_equal(vectors, np.stack(list(direct_embedder.embed(TEXTS))))
        assert_equal(np.linalg.norm(vectors, axis=1), np.ones(len(TEXTS)))

    def test_equals_torch(self, embedder: Embedder, sentence_model: Path):
        tokenizer = AutoTokenizer.from_pretrained(sentence_model)
        batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden_states = load_sentence_model()(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        mean = (hidden_states * mask).sum(1) / mask.sum(1)
        assert_equal(embed(embedder, TEXTS), torch.nn.functional.normalize(mean, dim=1).numpy())

    def test_meaning_is_near(self, embedder: Embedder):
        question, same, other = embed(embedder, TEXTS[:3])
        assert question @ same > 0.5 > 0.2 > question @ other

    def test_a_batch_changes_nothing(self, embedder: Embedder):
        alone = np.concatenate([embed(embedder, [text]) for text in TEXTS])
        assert_equal(embed(embedder, TEXTS), alone)

    def test_token_ids_give_what_their_text_gives(self, embedder: Embedder, sentence_model: Path):
        tokenizer = AutoTokenizer.from_pretrained(sentence_model)
        for special in (True, False):
            ids = [
                tokenizer(text, add_special_tokens=special)["input_ids"] for text in TEXTS if text
            ]
            assert_equal(embed(embedder, ids), embed(embedder, [text for text in TEXTS if text]))

    def test_special_tokens_alone_are_a_text(self, embedder: Embedder):
        assert_equal(embed(embedder, [[101, 102]]), embed(embedder, [""]))
        (tokens,) = embedder.tokenize(EmbedRequest("r", [[101]]))
        assert tokens.ids == [101, 101, 102]

    def test_a_token_outside_the_vocabulary_is_refused(self, embedder: Embedder):
        with pytest.raises(InvalidRequestError, match=r"30522.*30521") as error:
            embedder.tokenize(EmbedRequest("r", [[5], [30522]]))
        assert error.value.param == "input"

    @pytest.mark.parametrize("text", [LONG, [2773] * 600], ids=["text", "token ids"])
    def test_what_is_too_long_is_refused_with_both_numbers(self, embedder: Embedder, text):
        with pytest.raises(ContextLengthExceededError, match=r"602 tokens.* 512") as error:
            embedder.tokenize(EmbedRequest("r", [text]))
        assert error.value.param == "input"

    def test_the_one_that_is_too_long_is_named(self, embedder: Embedder):
        with pytest.raises(ContextLengthExceededError) as error:
            embedder.tokenize(EmbedRequest("r", ["short", LONG]))
        assert error.value.param == "input[1]"

    def test_cut_to_the_model_it_is_what_fastembed_makes_of_it(
        self, embedder: Embedder, direct_embedder: TextEmbedding
    ):
        vectors = embed(embedder, [LONG, "short"], truncate_to=MODEL_LIMIT)
        assert_equal(vectors, np.stack(list(direct_embedder.embed([LONG, "short"]))))

    @pytest.mark.parametrize("text", ["a b c d e f", [1037, 1038, 1039, 1040, 1041, 1042]])
    def test_cut_to_fewer_tokens(self, embedder: Embedder, text):
        (tokens,) = embedder.tokenize(EmbedRequest("r", [text], truncate_to=5))
        assert tokens.ids == [101, 1037, 1038, 1039, 102]
        (after,) = embedder.tokenize(EmbedRequest("r", [text]))
        assert len(after) == 8, "the next request is not cut"

    @pytest.mark.parametrize("text", ["a b", [1037]], ids=["text", "token ids"])
    def test_a_cut_that_leaves_nothing_is_refused(self, embedder: Embedder, text):
        with pytest.raises(InvalidRequestError, match=r"above 2.*got 2") as error:
            embedder.tokenize(EmbedRequest("r", [text], truncate_to=2))
        assert error.value.param == "truncate_prompt_tokens"


class TestReranker:
    def scores(self, reranker: Reranker, queries, documents, **options) -> np.ndarray:
        request = RerankRequest("r", queries, documents, **options)
        return reranker.compute(reranker.tokenize(request))[:, 0]

    def test_equals_fastembed_called_directly(
        self, reranker: Reranker, direct_reranker: TextCrossEncoder
    ):
        scores = self.scores(reranker, [QUERY], TEXTS)
        assert_equal(scores, np.array(list(direct_reranker.rerank(QUERY, TEXTS))))
        assert len(set(scores.tolist())) == len(TEXTS), "scores that differ"

    def test_equals_torch(self, reranker: Reranker, cross_encoder: Path):
        tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
        batch = tokenizer([QUERY] * len(TEXTS), TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = random_cross_encoder()(**batch).logits[:, 0]
        assert_equal(self.scores(reranker, [QUERY], TEXTS), logits.numpy())

    def test_pairs_one_by_one(self, reranker: Reranker):
        pairs = self.scores(reranker, ["a", "b"], ["x", "y"])
        assert_equal(pairs[:1], self.scores(reranker, ["a"], ["x"]))
        assert_equal(pairs[1:], self.scores(reranker, ["b"], ["y"]))

    def test_a_pair_that_is_too_long_is_refused_or_cut(
        self, reranker: Reranker, direct_reranker: TextCrossEncoder
    ):
        with pytest.raises(ContextLengthExceededError, match="512") as error:
            self.scores(reranker, [QUERY], ["x", LONG])
        assert error.value.param == "documents[1]"
        scores = self.scores(reranker, [QUERY], ["x", LONG], truncate_to=MODEL_LIMIT)
        assert_equal(scores, np.array(list(direct_reranker.rerank(QUERY, ["x", LONG]))))

    def test_documents_are_cut_by_tokens(self, reranker: Reranker):
        cut = self.scores(reranker, [QUERY], ["Köln is old, very old"], max_document_tokens=3)
        assert_equal(cut, self.scores(reranker, [QUERY], ["Köln is old"]))
        whole = self.scores(reranker, [QUERY], ["Köln is old"], max_document_tokens=3)
        assert_equal(cut, whole)
