from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from axion.backends.base import ModelConfig
from axion.backends.native.backend import NativeBackend
from axion.errors import ModelLoadError
from axion.types import EngineConfig
from tests.backends.native.harness import RecordingEngine, Start, complete, save_model
from tests.echo_engine import EchoEngine


async def test_the_models_own_sampling_defaults_are_used(start: Start):
    engine = RecordingEngine()
    backend = await start(engine, "none")
    await complete(backend)
    await complete(backend, temperature=1, top_k=0)
    assert [(p.temperature, p.top_k) for p in engine.params] == [(0.25, 7), (1, 0)]


@pytest.mark.parametrize("generation", [{"temperature": "hot"}, {"temperature": -1}])
async def test_a_wrong_generation_config_is_named(tmp_path: Path, generation: dict[str, Any]):
    folder = save_model(tmp_path / "wrong", None, **generation)

    async def factory(config: EngineConfig) -> EchoEngine:
        return EchoEngine()

    with pytest.raises(ModelLoadError, match=r"generation_config\.json"):
        await NativeBackend(factory).start(ModelConfig(model_name=str(folder)))
