"""From the settings and a model's files to the backends, each with what it is to load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from axion.backends.base import InferenceBackend, ModelConfig
from axion.backends.engines import spawned_engines
from axion.backends.facts import DeviceFacts
from axion.errors import ModelLoadError, ModelNotFoundError
from axion.router import plan as plan_module
from axion.router.decide import Reason
from axion.router.plan import Begin, Plan, plan
from axion.settings import Settings, SettingsError
from tests.backends.engine_models import write_gguf, write_model, write_program

MAX = """#!/bin/sh
[ "$*" = "list --json" ] && echo '{"architectures": {"LlamaForCausalLM":
  {"supported_encodings": ["float32"]}}}' || echo "MAX 26.7.0"
"""
GIB = 2**30


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for engine in spawned_engines():
        monkeypatch.delenv(engine.command_variable, raising=False)
    return folder


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the machine have a device."""

    def make(**fields: Any) -> None:
        async def device_facts(device: str) -> DeviceFacts:
            return DeviceFacts(**fields)

        monkeypatch.setattr(plan_module, "device_facts", device_facts)

    return make


async def made(
    model: Path | str,
    *,
    shown: list[str] | None = None,
    begin: Begin | None = None,
    **settings: Any,
) -> Plan:
    found = Settings(model_name=str(model), **settings)

    def show(stage: str, done: int, total: int) -> None:
        if shown is not None:
            shown.append(stage)

    config = ModelConfig(
        model_name=str(model),
        served_name="",
        memory_fraction=0.9,
        draft_model=found.draft_model,
    )
    return await plan(config, found, show, begin)


def engines(plan: Plan) -> list[str]:
    return [backend.engine for backend, _ in plan.backends]


async def test_the_engines_come_in_order_with_the_files_that_were_found(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "axion.router")
    write_program(folder / "max", MAX)
    model = write_model(folder.parent / "model")
    found = await made(model)
    assert engines(found) == ["max", "native"]
    assert found.decision is not None
    assert [v.code for v in found.decision.verdicts] == [
        *(Reason.ACCEPTED, Reason.NOT_INSTALLED, Reason.ACCEPTED)
    ]
    for _, config in found.backends:
        assert config.model_name == str(model)
        assert config.name == str(model)
    told = [message for message in caplog.messages if "serve" in message]
    assert len(told) == 3
    assert "AXION_VLLM_COMMAND" in told[1]


async def test_a_model_that_no_engine_serves_has_the_reason_of_each(folder: Path):
    write_program(folder / "max", MAX)
    model = write_model(folder.parent / "model", architectures=["NopeForCausalLM"])
    with pytest.raises(ModelLoadError) as caught:
        await made(model)
    lines = caught.value.message.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["max", "vllm", "native"]
    assert "NopeForCausalLM" in lines[1]
    assert "AXION_VLLM_COMMAND" in lines[2]
    assert "NopeForCausalLM" in lines[3]


async def test_python_that_comes_with_a_model_is_told(folder: Path):
    model = write_model(
        folder.parent / "m", architectures=["Own"], auto_map={"AutoModelForCausalLM": "own.Own"}
    )
    with pytest.raises(ModelLoadError, match=r"auto_map.*TRUST_REMOTE_CODE=true"):
        await made(model, axion_backends="native")
    assert engines(await made(model, axion_backends="native", trust_remote_code=True)) == ["native"]


async def test_a_gguf_file_goes_to_the_engine_that_loads_it(folder: Path):
    path = write_gguf(folder.parent / "m.gguf")
    assert engines(await made(path)) == ["native"]
    write_program(folder / "llama-server", "#!/bin/sh\necho 'version: 1 (a)' >&2\n")
    for order in (["native", "llama_cpp"], ["llama_cpp", "native"]):
        found = await made(path, axion_backends=",".join(order))
        assert engines(found) == order
        assert found.backends[0][1].model_name == str(path)
    other = write_gguf(folder.parent / "other.gguf", "mamba")
    assert engines(await made(other, axion_backends="native,llama_cpp")) == ["llama_cpp"]
    with pytest.raises(ModelLoadError, match="mamba"):
        await made(other)


async def test_a_remote_server_alone_needs_no_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    settings = {"axion_backends": "remote", "remote_url": "http://127.0.0.1:9/v1"}
    found = await made("some-org/not-here", **settings)
    assert engines(found) == ["remote"]
    assert found.backends[0][1].model_name == "some-org/not-here"
    with pytest.raises(ModelLoadError, match="REMOTE_URL"):
        await made("some-org/not-here", axion_backends="remote")


async def test_a_model_that_is_not_there_is_not_found(tmp_path: Path):
    with pytest.raises(ModelNotFoundError):
        await made(tmp_path / "nothing")


async def test_a_model_elsewhere_than_the_settings_allow_is_not_found(folder: Path):
    model = str(write_model(folder.parent / "m"))
    assert (await made(model, allowed_model_folders=str(folder.parent))).decision
    with pytest.raises(ModelNotFoundError, match="ALLOWED_MODEL_FOLDERS"):
        await made(model, allowed_model_folders=f"{folder.parent}/other")


async def test_a_draft_model_is_found_too_and_under_the_same_rule(folder: Path):
    model, draft = (str(write_model(folder.parent / name / "m")) for name in ("a", "b"))
    found = await made(model, draft_model=draft)
    assert [config.draft_model for _, config in found.backends] == [draft] * len(found.backends)
    with pytest.raises(SettingsError, match="ALLOWED_MODEL_FOLDERS"):
        await made(model, draft_model=draft, allowed_model_folders=f"{folder.parent}/a")
    with pytest.raises(
        SettingsError, match=r"^DRAFT_MODEL: The model folder /no does not exist\.$"
    ):
        await made(model, draft_model="/no")


async def test_an_engine_that_there_is_not_stops_the_start(folder: Path):
    with pytest.raises(
        SettingsError, match=r"AXION_BACKENDS: there is no engine 'vlm'\. Known: .*vllm"
    ):
        await made(str(write_model(folder.parent / "m")), axion_backends="vlm,native")


async def test_the_log_says_how_long_the_context_is_and_by_what(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "axion.router")
    model = write_model(folder.parent / "m", max_position_embeddings=1024)
    await made(str(model), axion_backends="native")
    assert "is 1024 tokens: the model takes 1024, and MAX_SEQ_LEN is 4096" in caplog.text


async def test_pickle_is_planned_for_only_where_it_is_allowed(folder: Path):
    path = write_model(folder.parent / "pickled")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="ALLOW_PICKLE"):
        await made(str(path), axion_backends="native")
    planned = await made(str(path), axion_backends="native", allow_pickle=True)
    assert planned.decision is not None
    assert planned.decision.engines == ("native",)


async def test_several_gpus_are_for_engines_that_can(folder: Path, device: Callable[..., None]):
    device(kind="cuda", free_bytes=80 * GIB, total_bytes=80 * GIB)
    write_program(folder / "max", MAX)
    found = await made(write_model(folder.parent / "m"), tensor_parallel_size=2)
    assert engines(found) == ["max"]
    assert found.decision is not None
    assert found.decision.verdicts[-1].code is Reason.UNSUPPORTED_PARALLELISM


async def test_an_engine_without_room_does_not_stand_by(folder: Path, device: Callable[..., None]):
    write_program(folder / "max", MAX)
    # 2.5 GiB for MAX, which computes 16-bit weights in 32 bits: 5; and 1 for the native engine.
    model = write_model(folder.parent / "m", num_bytes=GIB, dtype="bfloat16")
    for free, standby_fits in ((7, True), (5.5, False)):
        device(kind="cpu", free_bytes=int(free * GIB))
        found = await made(model)
        assert engines(found) == ["max", "native"]
        assert found.decision is not None
        assert found.decision.standby_fits is standby_fits
    device(kind="cpu", free_bytes=4 * GIB)
    assert engines(await made(model)) == ["native"]


async def test_engines_that_run_side_by_side_share_a_gpu(folder: Path, device: Callable[..., None]):
    device(kind="cuda", free_bytes=20 * GIB, total_bytes=20 * GIB)
    write_program(folder / "max", MAX)
    model = write_model(folder.parent / "m", num_bytes=2 * GIB)
    (_, first), (_, last) = (await made(model)).backends
    assert last.kv_cache_bytes == GIB
    assert first.kv_cache_bytes is None
    # 2.1 GiB of weights and 1 GiB of cache are the other's.
    assert first.memory_fraction == pytest.approx(0.9 - 3.1 / 20, abs=0.01)
    (_, first), (_, last) = (await made(model, standby="never")).backends
    assert (first.memory_fraction, last.kv_cache_bytes) == (0.9, None)


@pytest.mark.parametrize("answers", [True, False], ids=["accepted", "refused"])
async def test_the_last_engine_is_begun_before_the_others_have_answered(
    folder: Path, answers: bool
):
    go_on = folder.parent / "go-on"
    wait = f"while [ ! -e {go_on} ]; do sleep 0.02; done"
    last = "" if answers else "exit 1\n"
    write_program(folder / "max", MAX.replace("#!/bin/sh\n", f"#!/bin/sh\n{wait}\n{last}"))
    begun: list[tuple[InferenceBackend, ModelConfig]] = []

    def begin(backend: InferenceBackend, model: ModelConfig) -> None:
        begun.append((backend, model))
        go_on.touch()

    model = write_model(folder.parent / "m")
    async with asyncio.timeout(20):
        found = await made(model, begin=begin)
    assert engines(found) == ["max", "native"] if answers else ["native"]
    assert [tuple(found.backends[-1])] == begun
    assert begun[0][1].model_name == str(model)


@pytest.mark.parametrize(
    ("settings", "has_room", "gpu", "expected"),
    [
        ({}, True, False, ["native"]),
        # It would not run beside the other.
        ({"standby": "never"}, True, False, []),
        ({}, False, False, []),
        ({"standby": "never", "axion_backends": "vllm,native"}, True, False, ["native"]),
        # How much of the GPU it gets depends on the others.
        ({}, True, True, []),
        ({"axion_backends": "vllm,native"}, True, True, ["native"]),
        # One that is asked has to answer first.
        ({"axion_backends": "native,max"}, True, False, []),
        ({"axion_backends": "max"}, True, False, []),
    ],
)
async def test_an_engine_is_begun_only_if_it_is_needed_in_any_case(
    folder: Path,
    device: Callable[..., None],
    settings: dict[str, str],
    has_room: bool,
    gpu: bool,
    expected: list[str],
):
    free = (9 if has_room else 6) * GIB
    device(kind="cuda" if gpu else "cpu", free_bytes=free, total_bytes=free)
    write_program(folder / "max", MAX)
    model = write_model(folder.parent / "m", num_bytes=2 * GIB, dtype="float32")
    begun: list[str] = []
    found = await made(model, begin=lambda backend, _: begun.append(backend.engine), **settings)
    assert begun == expected
    assert set(begun) <= set(engines(found))


async def test_a_model_that_is_not_there_does_not_wait_for_the_engines(folder: Path):
    ended = folder.parent / "ended"
    text = f"#!/bin/sh\necho $$ >> {ended}\nexec sleep 60\n"
    write_program(folder / "max", text)
    async with asyncio.timeout(20):
        with pytest.raises(ModelNotFoundError):
            await made(folder / "nothing")
    for pid in ended.read_text().split() if ended.exists() else ():
        assert not Path(f"/proc/{pid}").exists()


async def test_what_is_downloaded_is_shown(monkeypatch: pytest.MonkeyPatch, folder: Path):
    model = write_model(folder.parent / "m")

    async def resolve(name: str, *, on_progress: Any, formats: Any, folders: Any) -> Any:
        on_progress(1, 2)
        return await real_resolve(str(model), formats=formats)

    real_resolve = plan_module.resolve
    monkeypatch.setattr(plan_module, "resolve", resolve)
    shown: list[str] = []
    await made("org/model", shown=shown)
    assert shown == ["Downloading org/model"]
