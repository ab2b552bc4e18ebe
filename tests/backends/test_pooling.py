"""Embedding and rerank models in their processes: loaded when asked, batched, restarted, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from axion.backends import pooling
from axion.backends.pooling import PoolingBackend, PoolingWorker
from axion.errors import (
    ContextLengthExceededError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelNotFoundError,
)
from axion.pooling.messages import MODEL_LIMIT, Pooled
from axion.settings import Settings, SettingsError
from axion.types import BackendState, PoolingConfig, PoolingHealth, PoolingKind, PoolingStats

pytestmark = pytest.mark.asyncio(loop_scope="module")

SENTENCE = "a sentence of some length, as people write them"
# Takes some seconds alone, and no longer than a second from one batch to the next.
MANY = [SENTENCE * 8] * 2048


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(sentence_model: Path, cross_encoder: Path) -> AsyncIterator[PoolingBackend]:
    """With both models loaded."""
    settings = Settings(
        embedding_model=f"minilm={sentence_model}", rerank_model=str(cross_encoder), cpu_threads=1
    )
    backend = PoolingBackend(settings)
    try:
        await asyncio.gather(backend.embed(None, ["a"]), backend.rerank(None, ["a"], ["b"]))
        yield backend
    finally:
        await backend.stop(0)


@pytest_asyncio.fixture(loop_scope="module")
async def small(cross_encoder: Path) -> AsyncIterator[PoolingBackend]:
    """With nothing loaded, and a place for one model: of two rerankers."""
    models = f"first={cross_encoder},second={cross_encoder}"
    backend = PoolingBackend(Settings(rerank_model=models, max_pooling_models=1, cpu_threads=1))
    try:
        yield backend
    finally:
        await backend.stop(0)


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def health(backend: PoolingBackend, name: str) -> PoolingHealth:
    (found,) = (health for health in backend.health() if health.name == name)
    return found


def stats(backend: PoolingBackend, name: str) -> PoolingStats:
    found = health(backend, name).stats
    assert found is not None
    return found


def numbers(answer: Pooled) -> tuple[float, ...]:
    return struct.unpack(f"<{len(answer.vectors) // 4}f", answer.vectors)


def processes() -> list[int]:
    return [
        child.pid
        for child in psutil.Process().children()
        if "axion.pooling.process" in child.cmdline()
    ]


async def score(backend: PoolingBackend, name: str | None = None) -> tuple[float, ...]:
    _, answer = await backend.rerank(name, ["query"], ["one", "two words"])
    return numbers(answer)


async def test_nothing_runs_before_it_is_asked_for(small: PoolingBackend):
    before = processes()
    assert health(small, "first").state is None
    assert small.names == ["BAAI/bge-small-en-v1.5", "first", "second"]
    await score(small)
    assert len(processes()) == len(before) + 1
    assert health(small, "first").state is BackendState.READY
    assert health(small, "second").state is None


async def test_embeds_in_the_order_of_the_request(backend: PoolingBackend):
    texts = ["short", "a longer text than that one", "x", "another of the longer texts, in words"]
    name, together = await backend.embed(None, texts)
    assert (name, together.dim, len(together.vectors)) == ("minilm", 384, 4 * 384 * len(texts))
    alone = [(await backend.embed("minilm", [text]))[1] for text in texts]
    assert together.num_tokens == sum(answer.num_tokens for answer in alone)
    expected = [number for answer in alone for number in numbers(answer)]
    assert numbers(together) == pytest.approx(expected, abs=1e-5)


async def test_concurrent_requests_share_batches(backend: PoolingBackend):
    before = stats(backend, "minilm")
    await asyncio.gather(*(backend.embed(None, [SENTENCE]) for _ in range(32)))
    after = stats(backend, "minilm")
    assert after.num_texts - before.num_texts == 32
    # Whoever comes first does not wait for others to fill the batch of eight.
    assert 4 <= after.num_batches - before.num_batches <= 16


async def test_a_small_request_passes_a_large_one(backend: PoolingBackend):
    large = asyncio.create_task(backend.embed(None, MANY))
    await until(lambda: stats(backend, "minilm").num_waiting > 1000)
    async with asyncio.timeout(20):
        await backend.embed(None, ["quick"])
    assert not large.done()
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    await until(lambda: stats(backend, "minilm").num_waiting == 0)


async def test_texts_of_callers_who_left_are_dropped(backend: PoolingBackend):
    before = stats(backend, "minilm")
    leaving = asyncio.create_task(backend.embed(None, MANY))
    await until(lambda: stats(backend, "minilm").num_waiting > 1000)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await until(lambda: stats(backend, "minilm").num_waiting == 0)
    after = stats(backend, "minilm")
    num_dropped = after.num_dropped - before.num_dropped
    num_computed = after.num_texts - before.num_texts
    assert num_dropped > 1000
    assert num_dropped + num_computed == len(MANY)
    assert health(backend, "minilm").num_requests == 0


async def test_the_models_word_on_a_request_is_an_error(backend: PoolingBackend):
    with pytest.raises(InvalidRequestError, match=r"602 tokens.* 512") as error:
        await backend.embed(None, ["word " * 600])
    assert error.value.code == ContextLengthExceededError.default_code
    assert error.value.param == "input"
    with pytest.raises(InvalidRequestError) as error:
        await backend.embed(None, ["a"], dimensions=385)
    assert error.value.param == "dimensions"


async def test_a_killed_process_fails_its_requests_and_comes_back(small: PoolingBackend):
    expected = await score(small)
    (slot,) = small._slots.values()
    running = asyncio.create_task(
        small.rerank(None, ["q"], ["word " * 500] * 2048, truncate_to=MODEL_LIMIT)
    )
    await until(lambda: stats(small, "first").num_waiting > 0)
    assert slot.worker.pid is not None
    os.kill(slot.worker.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailableError, match="stopped while"):
        async with asyncio.timeout(60):  # nothing else ends it
            await running
    assert health(small, "first").state is BackendState.DOWN
    assert await score(small) == expected  # it waits
    assert health(small, "first").state is BackendState.READY
    assert health(small, "first").restarts == 1


async def test_the_least_recently_used_model_makes_room(small: PoolingBackend):
    await score(small, "first")
    (first,) = processes_of(small)
    await score(small, "second")
    (second,) = processes_of(small)
    assert first != second
    assert not psutil.pid_exists(first)
    assert health(small, "first").state is None
    assert await score(small, "first") == await score(small, "first")


async def test_a_model_in_use_does_not_make_room(small: PoolingBackend):
    running = asyncio.create_task(
        small.rerank("first", ["q"], ["word " * 500] * 2048, truncate_to=MODEL_LIMIT)
    )
    await until(lambda: health(small, "first").num_requests == 1)
    with pytest.raises(EngineUnavailableError, match="MAX_POOLING_MODELS"):
        await score(small, "second")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await score(small, "second")


async def test_first_requests_share_one_load_and_a_leaver_does_not_end_it(small: PoolingBackend):
    before = len(processes())
    requests = [asyncio.create_task(score(small)) for _ in range(5)]
    await until(lambda: len(processes()) > before)
    requests[0].cancel()
    answers = await asyncio.gather(*requests[1:])
    assert len(processes()) == before + 1
    assert len(set(answers)) == 1


async def test_stopping_ends_a_load(small: PoolingBackend):
    before = len(processes())
    waiting = asyncio.create_task(score(small))
    await until(lambda: len(processes()) > before)
    await small.stop(0)
    with pytest.raises(EngineUnavailableError):
        await waiting
    assert len(processes()) == before
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        await score(small)


async def test_stopping_lets_running_requests_finish(small: PoolingBackend):
    await score(small)
    running = asyncio.create_task(small.rerank(None, ["q"], ["word " * 100] * 256))
    await until(lambda: stats(small, "first").num_waiting > 0)
    await small.stop(60)
    assert len(numbers((await running)[1])) == 256


@pytest.mark.parametrize(
    "name", ["nobody", "/etc/passwd", "./model", "../x", "~/x", "a\x00b", "x" * 5000]
)
async def test_row_17_a_client_cannot_name_a_folder(
    backend: PoolingBackend, sentence_model: Path, name: str
):
    for model in (name, str(sentence_model)):
        with pytest.raises(ModelNotFoundError, match="minilm") as error:
            await backend.embed(model, ["a"])
        assert len(error.value.message) < 400
    assert len(processes_of(backend)) == 2


async def test_a_folder_elsewhere_than_the_settings_allow_is_refused_at_the_start(
    cross_encoder: Path,
):
    named = {"rerank_model": f"mine={cross_encoder}"}
    PoolingBackend(Settings(**named, allowed_model_folders=str(cross_encoder.parent)))
    with pytest.raises(ModelNotFoundError, match="ALLOWED_MODEL_FOLDERS"):
        PoolingBackend(Settings(**named, allowed_model_folders="/nowhere"))


async def test_a_folder_that_does_not_exist_is_named_at_the_start_with_its_setting(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"EMBEDDING_MODEL: the folder .*/none does not exist"):
        PoolingBackend(Settings(embedding_model=f"{tmp_path}/none"))


async def test_the_wrong_kind_of_model_is_told_apart(backend: PoolingBackend, cross_encoder: Path):
    for name in (cross_encoder.name, "BAAI/bge-reranker-base"):
        with pytest.raises(InvalidRequestError, match="/v1/rerank"):
            await backend.embed(name, ["a"])
    for name in ("minilm", "BAAI/bge-small-en-v1.5"):
        with pytest.raises(InvalidRequestError, match="/v1/embeddings"):
            await backend.rerank(name, ["a"], ["a"])


async def test_a_model_that_cannot_be_downloaded_says_the_way_out(
    backend: PoolingBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTEMBED_CACHE_PATH", str(tmp_path))
    with pytest.raises(EngineUnavailableError, match="EMBEDDING_MODEL") as error:
        await backend.embed("baai/BGE-small-EN-v1.5", ["a"])
    assert "BAAI/bge-small-en-v1.5" in error.value.message
    assert error.value.code == "model_load_failed"
    assert str(tmp_path) not in error.value.message
    assert len(processes_of(backend)) == 2


async def test_a_broken_folder_is_tried_again_after_a_while_and_its_path_is_not_told(
    tmp_path: Path, cross_encoder: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "model"
    folder.mkdir()
    backend = PoolingBackend(Settings(rerank_model=f"broken={folder}", cpu_threads=1))
    try:
        with pytest.raises(EngineUnavailableError, match=r"broken.*log") as error:
            await score(backend)
        assert str(tmp_path) not in error.value.message
        folder.rmdir()
        folder.symlink_to(cross_encoder)
        with pytest.raises(EngineUnavailableError, match=r"broken.*log"):
            await score(backend)
        monkeypatch.setattr(pooling, "_RETRY_AFTER_S", 0)
        assert len(await score(backend)) == 2
    finally:
        await backend.stop(0)


def processes_of(backend: PoolingBackend) -> list[int]:
    return [slot.worker.pid for slot in backend._slots.values() if slot.worker.pid is not None]


async def test_the_process_answers_pings(cross_encoder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PoolingWorker, "ping_interval_s", 0.05)
    worker = PoolingWorker(
        PoolingConfig(
            kind=PoolingKind.RERANK,
            name="r",
            model=str(cross_encoder),
            is_folder=True,
            num_threads=1,
        )
    )
    await worker.start()
    try:
        frames: list[bytes] = []
        monkeypatch.setattr(worker, "take", frames.append)
        async with asyncio.timeout(30):
            while len(frames) < 5:  # although nobody asks it for anything
                await asyncio.sleep(0.01)
    finally:
        await worker.stop(0)
