from __future__ import annotations

from pathlib import Path

import pytest

from axion.backends.base import ModelConfig
from axion.backends.native.backend import NativeBackend
from axion.engine.echo import EchoEngine
from axion.errors import EngineUnavailableError, ModelLoadError
from axion.openai.chat_answer import collect_chat
from axion.types import BackendState, EngineConfig
from tests.backends.native.harness import (
    RecordingEngine,
    Start,
    chat,
    chat_request,
    fault,
    save_model,
)


async def test_a_backend_says_how_it_is(start: Start):
    async def factory(config: EngineConfig) -> EchoEngine:
        raise AssertionError

    unstarted = NativeBackend(factory)
    assert (await unstarted.health()).state is BackendState.STARTING
    with pytest.raises(EngineUnavailableError):
        unstarted.chat(chat_request(), "r")
    await unstarted.stop(0)
    backend = await start(EchoEngine())
    health = await backend.health()
    assert health.state is BackendState.READY
    assert health.info is not None
    await backend.stop(0)
    assert (await backend.health()).state is BackendState.STOPPED


async def test_the_engine_is_started_with_the_models_limits(folders: dict[str, Path]):
    configs = []

    async def factory(config: EngineConfig) -> EchoEngine:
        configs.append(config)
        return EchoEngine()

    backend = NativeBackend(factory)
    path = str(folders["none"])
    limits = {
        "max_seq_len": 77,
        "max_num_seqs": 3,
        "quantization": "int8",
        "speculative": "ngram",
        "draft_model": str(folders["none"]),
    }
    await backend.start(ModelConfig(model_name=path, **limits))
    (config,) = configs
    assert config.model_path == str(folders["none"])
    assert (config.max_model_len, config.max_num_seqs) == (77, 3)
    assert (config.speculative, config.draft_model_path) == ("ngram", config.model_path)
    assert config.quantization == "int8"


async def test_an_engine_that_fails_to_start_fails_the_backend(folders: dict[str, Path]):
    async def factory(config: EngineConfig) -> EchoEngine:
        raise ModelLoadError("Too large.")

    with pytest.raises(ModelLoadError, match="Too large"):
        await NativeBackend(factory).start(ModelConfig(model_name=str(folders["none"])))


async def test_a_damaged_tokenizer_stops_the_engine_again(tmp_path: Path):
    folder = save_model(tmp_path / "damaged", None)
    (folder / "tokenizer.json").write_text("{}")
    engine = EchoEngine()

    async def factory(config: EngineConfig) -> EchoEngine:
        return engine

    with pytest.raises(ModelLoadError):
        await NativeBackend(factory).start(ModelConfig(model_name=str(folder)))
    assert engine.health().state is BackendState.STOPPED


async def test_a_conversation_is_tokenised_as_a_chat_would_be(start: Start):
    engine = RecordingEngine()
    backend = await start(engine)
    answer = await chat(backend, "Hello, fox.")
    tokens = await backend.tokenize(chat_request("Hello, fox."), with_strings=True)
    assert tokens.token_ids == engine.prompts[0]
    assert len(tokens.token_strings) == len(tokens.token_ids) == answer.usage.prompt_tokens
    assert tokens.max_model_len == engine.info.max_model_len
    assert "Hello, fox." in await backend.detokenize(tokens.token_ids)


async def test_an_engine_that_is_down_is_an_error_before_the_first_chunk(start: Start):
    engine = EchoEngine()
    backend = await start(engine)
    await backend.stop(0)
    for n in (1, 3):
        error = await fault(backend.chat(chat_request(n=n), "r"))
        assert error.status == 503


async def test_the_key_of_a_request_is_remembered_and_it_can_still_run(start: Start, monkeypatch):
    backend = await start(EchoEngine())
    first = await backend.prepare_chat(chat_request("abc", user="a"))
    with monkeypatch.context() as patch:
        patch.setattr("axion.backends.native.chat.chat_prompt", None)
        second = await backend.prepare_chat(chat_request("abc", user="b"))
    assert (first.cache_key, first.is_deterministic) == (second.cache_key, second.is_deterministic)
    answer = await collect_chat(second.run("r"))
    assert answer.choices[0].message.content == "abc"


async def test_a_template_that_shows_the_date_is_rendered_every_time(start: Start):
    backend = await start(EchoEngine(), "dated")
    for _ in range(2):
        await backend.prepare_chat(chat_request("abc"))
    assert not backend._keys


async def test_a_prepared_chat_is_not_tokenised_twice(start: Start, monkeypatch):
    backend = await start(EchoEngine())
    prepared = await backend.prepare_chat(chat_request("abc"))
    monkeypatch.setattr("axion.backends.native.chat.chat_prompt", None)
    answer = await collect_chat(prepared.run("r"))
    assert answer.choices[0].message.content == "abc"
    assert not prepared.is_deterministic
