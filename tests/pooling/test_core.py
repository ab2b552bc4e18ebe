"""Requests through a model that counts: whole answers, in order, and only the guilty fail."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from axion.errors import InvalidRequestError
from axion.pooling.batcher import Batcher
from axion.pooling.core import PoolingCore
from axion.pooling.messages import EmbedRequest, Failed, Pooled, Refused
from axion.pooling.model import Tokens


class CountingModel:
    """One token a letter; the vector of "aab" is `[2, 1]`: letters a and letters b."""

    dim = 2
    max_length = 100
    pads = True

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def tokenize(self, request: EmbedRequest) -> list[Tokens]:
        if "too long" in request.inputs:
            raise InvalidRequestError("too long", param="input", code="context_length_exceeded")
        if "broken" in request.inputs:
            raise RuntimeError("the tokenizer broke")
        return [Tokens.of(list(map(ord, text))) for text in request.inputs]

    def compute(self, batch: list[Tokens]) -> NDArray[np.float32]:
        texts = ["".join(map(chr, tokens.ids)) for tokens in batch]
        self.batches.append(texts)
        if "crash" in texts:
            raise RuntimeError("the model broke")
        rows = [
            (np.nan, 0) if text == "nan" else (text.count("a"), text.count("b")) for text in texts
        ]
        return np.array(rows, np.float32)


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@pytest.fixture
def core(model: CountingModel) -> PoolingCore:
    return PoolingCore(model, Batcher(4, 20, 0.0), clock=lambda: 0.0)


def run(core: PoolingCore) -> dict[str, Pooled | Refused | Failed]:
    answers = {}
    while core.has_waiting:
        for output in core.step():
            assert output.request_id not in answers, "one answer to a request"
            answers[output.request_id] = output
    return answers


def vectors(output: Pooled | Refused | Failed) -> list[list[float]]:
    assert isinstance(output, Pooled)
    return np.frombuffer(output.vectors, "<f4").reshape(-1, output.dim).tolist()


def test_results_keep_the_order_of_the_request(core: PoolingCore):
    texts = ["aaaaaa", "b", "aab", "", "bbbb", "ab"]
    core.add(EmbedRequest("r", texts))
    answer = run(core)["r"]
    assert vectors(answer) == [[text.count("a"), text.count("b")] for text in texts]
    assert answer.num_tokens == sum(map(len, texts))


def test_requests_share_batches(core: PoolingCore, model: CountingModel):
    for name in ("x", "y", "z"):
        assert core.add(EmbedRequest(name, ["a"])) is None
    assert run(core).keys() == {"x", "y", "z"}
    assert model.batches == [["a", "a", "a"]]


def test_dimensions_are_cut_and_scaled_to_length_1(core: PoolingCore):
    core.add(EmbedRequest("r", ["aab", "b"], dimensions=1))
    answer = run(core)["r"]
    assert answer.dim == 1
    assert vectors(answer) == [[1.0], [0.0]]


def test_more_dimensions_than_there_are_is_refused(core: PoolingCore):
    answer = core.add(EmbedRequest("r", ["a"], dimensions=3))
    assert isinstance(answer, Refused)
    assert answer.param == "dimensions"
    assert not core.has_waiting


def test_what_cannot_be_tokenised_is_answered_at_once(core: PoolingCore):
    assert core.add(EmbedRequest("r", ["a", "too long"])) == Refused(
        "r", "too long", "input", "context_length_exceeded"
    )
    assert core.add(EmbedRequest("s", ["broken"])) == Failed("s")
    assert not core.has_waiting


def test_a_vector_that_is_not_numbers_fails_only_its_request(core: PoolingCore):
    core.add(EmbedRequest("bad", ["a", "nan", "b", "aaaaaaaa", "bbbbbbbbbbbb"]))
    core.add(EmbedRequest("good", ["ab"]))
    answers = run(core)
    assert answers["bad"] == Failed("bad")
    assert vectors(answers["good"]) == [[1, 1]]


def test_a_batch_that_breaks_fails_its_requests_and_the_next_goes_on(core: PoolingCore):
    core.add(EmbedRequest("bad", ["crash"]))
    core.add(EmbedRequest("beside", ["aaaaa"]))
    answers = run(core)
    assert answers == {"bad": Failed("bad"), "beside": Failed("beside")}
    core.add(EmbedRequest("next", ["a"]))
    assert vectors(run(core)["next"]) == [[1, 0]]


def test_texts_of_a_caller_who_left_are_not_computed(core: PoolingCore, model: CountingModel):
    core.add(EmbedRequest("left", ["a"] * 45))
    core.add(EmbedRequest("stays", ["b"]))
    core.step()
    core.abort(["left", "unknown"])
    answers = run(core)
    assert answers.keys() == {"stays"}
    assert core.stats.num_dropped == 25
    assert core.stats.num_texts == sum(map(len, model.batches)) == 21


def test_stats_count_texts_tokens_padding_and_batch_sizes(core: PoolingCore):
    core.add(EmbedRequest("r", ["a", "aa", "aaa", "aaaa", "aaaaa"]))
    assert core.stats.num_waiting == 5
    run(core)
    stats = core.stats
    assert (stats.num_waiting, stats.num_texts, stats.num_tokens) == (0, 5, 15)
    assert stats.num_padding_tokens == 3 + 2 + 1
    assert stats.num_batches == 2
    assert stats.batch_sizes[:4] == (1, 0, 1, 0)


def test_a_model_that_pads_nothing_counts_no_padding(core: PoolingCore, model: CountingModel):
    model.pads = False
    core.add(EmbedRequest("r", ["a", "aaa"]))
    run(core)
    assert (core.stats.num_tokens, core.stats.num_padding_tokens) == (4, 0)
