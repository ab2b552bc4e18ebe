"""The registry finds models by name and knows how far each one is."""

from __future__ import annotations

import pytest

from axion.backends.base import ModelConfig
from axion.errors import EngineUnavailableError, ModelLoadError, ModelNotFoundError
from axion.router.registry import ModelRegistry
from axion.types import BackendState
from tests.server.conftest import ScriptedBackend


async def test_carries_several_models_each_with_its_own_state():
    registry = ModelRegistry()
    first, second = ScriptedBackend(), ScriptedBackend()
    registry.add(ModelConfig(model_name="a/b", served_name="one"), first)
    registry.add(ModelConfig(model_name="two"), second)
    second.start_error = ModelLoadError("no such file")
    assert [served.name for served in registry] == ["one", "two"]
    assert {health.state for health in (await registry.health()).values()} == {
        BackendState.STARTING
    }
    with pytest.raises(ModelLoadError, match="no such file"):
        await registry.start()
    health = await registry.health()
    assert health["one"].state is BackendState.READY
    assert health["two"].state is BackendState.DOWN
    assert "file" not in health["two"].detail
    assert (await registry.get("one").choose()).backend is first
    with pytest.raises(EngineUnavailableError, match="down"):
        await registry.get("two").choose()


async def test_a_stopped_model_takes_no_request():
    registry = ModelRegistry()
    backend = ScriptedBackend()
    registry.add(ModelConfig(model_name="one"), backend)
    await registry.start()
    await registry.stop(3.5)
    assert backend.stopped_with == 3.5
    with pytest.raises(EngineUnavailableError, match="stopped"):
        await registry.get("one").choose()


@pytest.mark.parametrize("name", ["", "a", "one ", "ONE", "../one", "one\x00", "x" * 10_000])
def test_only_the_exact_name_is_found(name: str):
    registry = ModelRegistry()
    registry.add(ModelConfig(model_name="one"), ScriptedBackend())
    with pytest.raises(ModelNotFoundError, match=r"Served: one\.") as error:
        registry.get(name)
    assert error.value.param == "model"
    assert len(error.value.message) < 600
    assert error.value.message.isprintable()
