"""The engine in its own process: it answers, it is restarted, it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, chdir
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio

from axion.backends import worker
from axion.backends.native.engine import WorkerEngine, spawn_engine
from axion.backends.process import ManagedProcess
from axion.backends.supervisor import Supervisor
from axion.errors import EngineUnavailableError, InternalError, ModelLoadError
from axion.types import BackendState, EngineConfig, FinishReason, SamplingParams

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)
PROMPT = list(range(5, 25))
SHORT = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> EngineConfig:
    return EngineConfig(
        model_path=str(tiny_model), device="cpu", kv_cache_bytes=2**26, num_threads=1
    )


@pytest.fixture(scope="module")
def progress() -> list[tuple[int, int]]:
    """What the engine told of its loading."""
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(
    config: EngineConfig, progress: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WorkerEngine]:
    """Started in a folder with a file that would end it, and asked often whether it is there."""
    folder = tmp_path_factory.mktemp("working")
    (folder / "zmq.py").write_text("raise SystemExit('imported')")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerEngine, "ping_interval_s", 0.05)
        engine = await spawn_engine(config, lambda done, total: progress.append((done, total)))
        engine.ping_interval_s = WorkerEngine.ping_interval_s  # also when the patch has gone
    try:
        yield engine
    finally:
        await engine.stop(0)


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def collect(engine: WorkerEngine, name: str, prompt: list[int], params) -> list[int]:
    outputs = [output async for output in engine.generate(name, prompt, params)]
    assert outputs[-1].finish_reason is not None
    return [token for output in outputs for token in output.token_ids]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder in which the path of a socket is not too long for one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


async def test_the_process_has_its_memory_tuned(engine: WorkerEngine):
    assert set(worker.tuning(os.environ).items()) <= set(
        psutil.Process(engine.pid).environ().items()
    )


@pytest.mark.usefixtures("engine")
async def test_loading_tells_its_progress(progress: list[tuple[int, int]]):
    assert progress[-1][0] == progress[-1][1] > 0
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


async def test_files_in_the_working_folder_are_not_imported(engine: WorkerEngine):
    assert (Path(psutil.Process(engine.pid).cwd()) / "zmq.py").exists()


async def test_the_engine_answers_pings(engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch):
    frames: list[bytes] = []
    monkeypatch.setattr(engine, "take", frames.append)
    await until(lambda: len(frames) >= 5)  # although nobody asks it for anything


async def test_sequences_run_together_and_do_not_disturb_each_other(engine: WorkerEngine):
    prompts = [[5, 6, 7 + i] for i in range(6)]
    alone = [await collect(engine, f"a{i}", p, SHORT) for i, p in enumerate(prompts)]
    together = await asyncio.gather(
        *(collect(engine, f"t{i}", p, SHORT) for i, p in enumerate(prompts))
    )
    assert together == alone


async def test_a_closed_iterator_frees_its_blocks(engine: WorkerEngine):
    async with aclosing(engine.generate("left", [1, 2, 3], LONG)) as outputs:
        await anext(outputs)
        await until(lambda: engine.stats.num_running == 1)
    await until(lambda: engine.stats.num_running == 0 and engine.stats.num_blocks_used == 0)


@pytest.mark.parametrize("prompt", [[], [10**6], [-1], [1] * 5000], ids=lambda p: str(p[:2]))
async def test_what_the_engine_cannot_take_is_refused_and_it_lives(
    engine: WorkerEngine, prompt: list[int]
):
    with pytest.raises(InternalError, match="prompt"):
        await collect(engine, "bad", prompt, SHORT)
    assert len(await collect(engine, "good", [1], SHORT)) == 8


async def test_a_killed_worker_is_restarted_and_its_streams_go_on_beside_new_ones(
    config: EngineConfig,
):
    engine = await spawn_engine(config)
    sampled = {"temperature": 1.0, "max_tokens": 120, "ignore_eos": True}
    kinds = {
        "greedy": SamplingParams(**{**sampled, "temperature": 0}),
        "seeded": SamplingParams(**sampled, seed=5, frequency_penalty=0.5),
        "scored": SamplingParams(**sampled, seed=6, prompt_logprobs=1, logprobs=0),
    }
    try:
        expected = {name: await collect(engine, name, PROMPT, p) for name, p in kinds.items()}
        streams = {
            f"{name}-{i}": engine.generate(f"{name}-{i}", PROMPT, params)
            for name, params in kinds.items()
            for i in range(4)
        }
        begun = {name: [await anext(stream)] for name, stream in streams.items()}
        pid = engine.pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine.health().state is BackendState.DOWN)
        new = asyncio.create_task(collect(engine, "new", PROMPT, SHORT))

        async def rest(name: str) -> None:
            begun[name] += [output async for output in streams[name]]

        async with asyncio.timeout(30):
            await asyncio.gather(*map(rest, streams))
            assert await new == expected["greedy"][:8]
        for name, outputs in begun.items():
            tokens = [token for output in outputs for token in output.token_ids]
            assert tokens == expected[name.partition("-")[0]], name
            assert outputs[-1].finish_reason is FinishReason.LENGTH
            scores = [score for output in outputs for score in output.prompt_logprobs or ()]
            assert len(scores) == (len(PROMPT) - 1 if "scored" in name else 0)
            assert len({output.num_cached_tokens for output in outputs}) == 1
        assert engine.health().restarts == 1
        assert engine.pid != pid
        assert engine.stats.num_running == 0
    finally:
        await engine.stop(0)


async def test_stop_lets_running_sequences_finish(config: EngineConfig):
    engine = await spawn_engine(config)
    pid = engine.pid
    stream = engine.generate("last", [1, 2], SamplingParams(max_tokens=200, ignore_eos=True))
    await anext(stream)
    stopping = asyncio.create_task(engine.stop(30))
    outputs = [output async for output in stream]
    await stopping
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert not psutil.pid_exists(pid)


async def test_stop_ends_what_does_not_finish_in_time(config: EngineConfig):
    engine = await spawn_engine(config)
    pid = engine.pid
    stream = engine.generate("endless", [1, 2], LONG)
    await anext(stream)
    await engine.stop(0)
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        async for _ in stream:
            pass
    assert not psutil.pid_exists(pid)


async def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path):
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        await spawn_engine(EngineConfig(model_path=str(tmp_path)))


async def test_a_model_that_does_not_fit_says_need_and_have(config: EngineConfig):
    with pytest.raises(ModelLoadError, match=r"needs .* GiB .* MAX_SEQ_LEN"):
        await spawn_engine(msgspec.structs.replace(config, kv_cache_bytes=2**16))


@pytest.mark.parametrize("moment", ["loading", "loaded"])
async def test_nothing_is_left_when_the_parent_is_killed(
    tiny_model: Path, short_path: Path, moment: str
):
    code = (
        "import asyncio\n"
        "from axion.backends.native.engine import spawn_engine\n"
        "from axion.types import EngineConfig\n"
        "async def main():\n"
        f"    engine = await spawn_engine(EngineConfig(model_path={str(tiny_model)!r}, "
        "device='cpu', kv_cache_bytes=2**24))\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(short_path)},
    ) as parent:
        assert parent.stdout is not None
        children = psutil.Process(parent.pid).children
        await until(lambda: children() != [])
        (child,) = children()
        if moment == "loaded":
            assert int(await asyncio.to_thread(parent.stdout.readline)) == child.pid
        parent.kill()
        await until(lambda: not child.is_running() and not list(short_path.glob("axion-*")))


# An engine without a model: it starts in a moment and does what a test's script says.
FAKE_ENGINE = """
import os, sys, time
import zmq
from axion.engine.messages import *
from axion.types import EngineInfo, EngineStats, FinishReason, SequenceOutput

socket = zmq.Context().socket(zmq.PAIR)
socket.connect(sys.argv[1])
start = decode_to_engine(socket.recv())

def ready():
    info = EngineInfo(
        architecture="Fake", device="cpu", dtype="float32", vocab_size=10, max_model_len=10,
        num_blocks=1, block_size=1, num_parameters=0, weight_bytes=0, kv_cache_bytes=0,
        eos_token_ids=())
    socket.send(encode(EngineReady(info)))
"""
SERVE = "ready()\nwhile not isinstance(decode_to_engine(socket.recv()), Shutdown): pass\n"

# Each sequence gets its tokens in one step: the number of each, from 0 on.
ANSWER = """
ready()
while not isinstance(message := decode_to_engine(socket.recv()), Shutdown):
    if isinstance(message, AddRequest):
        assert message.params.seed is not None, "the next process needs the same one"
        token_ids = list(range(message.num_generated, 8))
        output = SequenceOutput(message.request_id, token_ids, finish_reason=FinishReason.LENGTH)
        socket.send(encode(StepOutputs([output], EngineStats())))
"""

# The same for the sequences that come together; one whose prompt is 9 ends the process.
DIE_TOGETHER = """
ready()
messages = []
while not isinstance(message := decode_to_engine(socket.recv()), Shutdown):
    if isinstance(message, AddRequest):
        messages.append(message)
    while socket.poll(200):
        messages.append(decode_to_engine(socket.recv()))
    if any(9 in message.token_ids for message in messages):
        os._exit(1)
    outputs = [
        SequenceOutput(m.request_id, list(range(8)), finish_reason=FinishReason.LENGTH)
        for m in messages
    ]
    socket.send(encode(StepOutputs(outputs, EngineStats())))
    messages = []
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Decides what engine processes do from now on."""
    path = tmp_path / "engine.py"
    spawn = ManagedProcess.spawn

    async def spawn_fake(command: list[str], **options: Any) -> ManagedProcess:
        return await spawn([sys.executable, str(path), *command[-2:]], **options)

    monkeypatch.setattr(worker.ManagedProcess, "spawn", spawn_fake)
    monkeypatch.setattr(Supervisor, "first_backoff_s", 0.05)

    def write(body: str) -> None:
        path.write_text(FAKE_ENGINE + body)

    write(SERVE)
    return write


async def test_whatever_breaks_the_supervision_of_a_start_is_raised(config: EngineConfig, script):
    script("socket.send(encode(LoadProgress(1, 2)))\n" + SERVE)

    def break_off(done: int, total: int) -> None:
        raise BrokenPipeError

    async with asyncio.timeout(10):
        with pytest.raises(BrokenPipeError):
            await spawn_engine(config, break_off)


async def test_a_message_that_cannot_be_read_restarts_the_engine(config: EngineConfig, script):
    script("ready()\nsocket.recv()\nsocket.send(b'?')\ntime.sleep(600)\n")
    engine = await spawn_engine(config)
    try:
        script(ANSWER)
        async with asyncio.timeout(10):
            assert await collect(engine, "a", [1], SHORT) == list(range(8))
        assert engine.health().restarts == 1
    finally:
        await engine.stop(0)


async def test_restarting_goes_on_until_the_engine_can_be_started(
    config: EngineConfig, script, monkeypatch: pytest.MonkeyPatch
):
    engine = await spawn_engine(config)
    try:
        script("socket.send(encode(EngineFailed('no memory')))\n")
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: engine.health().restarts == 2)
        assert engine.health().state is BackendState.DOWN

        def fail(**_: Any) -> str:
            raise OSError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(worker.tempfile, "mkdtemp", fail)
            restarts = engine.health().restarts
            await until(lambda: engine.health().restarts > restarts + 1)
        script(SERVE)
        await until(lambda: engine.health().state is BackendState.READY)
    finally:
        await engine.stop(0)


async def test_a_sequence_that_ends_every_process_fails_and_takes_no_other_with_it(
    config: EngineConfig, script
):
    script(DIE_TOGETHER)
    engine = await spawn_engine(config)
    prompts = {f"good-{i}": [1] for i in range(6)} | {"deadly": [9]}
    try:
        async with asyncio.timeout(30):
            answers = await asyncio.gather(
                *(collect(engine, name, prompt, SHORT) for name, prompt in prompts.items()),
                return_exceptions=True,
            )
        *good, deadly = answers
        assert good == [list(range(8))] * 6
        assert isinstance(deadly, EngineUnavailableError)
        assert "3 times" in deadly.message
        await until(lambda: engine.health().state is BackendState.READY)
        assert engine.health().restarts == 3
        assert await collect(engine, "after", [1], SHORT) == list(range(8))
    finally:
        await engine.stop(0)


async def test_a_sequence_does_not_wait_for_ever_for_a_new_process(
    config: EngineConfig, script, monkeypatch: pytest.MonkeyPatch
):
    engine = await spawn_engine(config)
    monkeypatch.setattr(engine, "MAX_PAUSE_S", 1.0)
    stream = asyncio.create_task(collect(engine, "a", [1], SHORT))
    await until(lambda: not engine._idle.is_set())
    try:
        script("socket.send(encode(EngineFailed('no memory')))\n")
        os.kill(engine.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            with pytest.raises(EngineUnavailableError, match="restarted"):
                await stream
    finally:
        await engine.stop(0)


async def test_nobody_waits_for_a_process_that_is_given_up(
    config: EngineConfig, script, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Supervisor, "max_restarts", 0)
    engine = await spawn_engine(config)
    try:
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: "again and again" in engine.health().detail)
        assert not engine.health().returns_soon
        async with asyncio.timeout(1):
            with pytest.raises(EngineUnavailableError, match="again and again") as error:
                await collect(engine, "a", [1], SHORT)
        assert error.value.headers == {"Retry-After": "5"}
    finally:
        await engine.stop(0)


@pytest.mark.parametrize("life", ["first", "second"])
async def test_a_worker_that_hangs_while_it_loads_is_killed(
    config: EngineConfig, script, life: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(WorkerEngine, "ping_interval_s", 0.1)
    monkeypatch.setattr(WorkerEngine, "load_limit_s", 0.5)
    hang = "socket.send(encode(LoadProgress(1, 2)))\ntime.sleep(600)\n"
    if life == "first":
        script(hang)
        with pytest.raises(ModelLoadError, match="neither told anything nor computed"):
            await spawn_engine(config)
        return
    engine = await spawn_engine(config)
    try:
        script(hang)
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: engine.health().restarts == 2)
        script(SERVE)
        await until(lambda: engine.health().state is BackendState.READY)
    finally:
        await engine.stop(0)


@pytest.mark.parametrize(
    "step", ["socket.send(encode(LoadProgress(1, 2)))\ntime.sleep(0.1)", "os.urandom(2**20)"]
)
async def test_a_worker_that_loads_for_long_is_not_killed(
    config: EngineConfig, script, step: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(WorkerEngine, "ping_interval_s", 0.1)
    monkeypatch.setattr(WorkerEngine, "load_limit_s", 0.5)
    steps = "\n    ".join(step.splitlines())
    script(f"end = time.monotonic() + 1.5\nwhile time.monotonic() < end:\n    {steps}\n" + SERVE)
    engine = await spawn_engine(config)
    await engine.stop(0)


async def test_stop_ends_sequences_that_wait_for_a_new_process(
    config: EngineConfig, script, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Supervisor, "first_backoff_s", 600)
    engine = await spawn_engine(config)
    streams = [asyncio.create_task(collect(engine, str(i), [1], SHORT)) for i in range(3)]
    await until(lambda: not engine._idle.is_set())
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: engine.health().state is BackendState.DOWN)
    async with asyncio.timeout(10):
        await engine.stop(60)
        ends = await asyncio.gather(*streams, return_exceptions=True)
    assert {str(end) for end in ends} == {"The server is shutting down."}


@pytest.mark.parametrize("moment", ["pause", "load"])
async def test_stop_during_a_restart_ends_it(
    config: EngineConfig, script, moment: str, monkeypatch: pytest.MonkeyPatch
):
    if moment == "pause":
        monkeypatch.setattr(Supervisor, "first_backoff_s", 600)
    engine = await spawn_engine(config)
    script("time.sleep(0.5)\n" + SERVE)
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: engine.health().state is BackendState.DOWN)
    if moment == "load":
        await until(lambda: engine.pid is not None)
    monkeypatch.setattr(worker, "_EXIT_GRACE_S", 600)
    async with asyncio.timeout(60):
        await engine.stop(0)
    assert engine.health().state is BackendState.STOPPED
    assert engine.pid is None
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        await collect(engine, "late", [1], SHORT)


async def test_streams_end_when_the_engine_dies_while_it_is_drained(config: EngineConfig, script):
    engine = await spawn_engine(config)
    stream = asyncio.create_task(collect(engine, "a", [1], SHORT))
    await until(lambda: not engine._idle.is_set())
    stopping = asyncio.create_task(engine.stop(60))
    await until(lambda: engine.health().state is BackendState.STOPPED)
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        with pytest.raises(EngineUnavailableError):
            await stream
        await stopping


async def test_the_socket_is_for_this_user_alone(
    config: EngineConfig, script, short_path: Path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    engine = await spawn_engine(config)
    (folder,) = short_path.glob("axion-*")  # the engine of this script does not remove it
    assert (folder / "engine.sock").exists()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await engine.stop(0)


# Answers as the real engine does: after every message, and not while it computes a step.
ONE_STEP = """
ready()
while True:
    message = decode_to_engine(socket.recv())
    if isinstance(message, Shutdown):
        break
    outputs = []
    if isinstance(message, AddRequest):
        until = time.monotonic() + message.params.max_tokens
        while time.monotonic() < until:
            pass
        outputs = [SequenceOutput(message.request_id, [7], finish_reason=FinishReason.STOP)]
    socket.send(encode(StepOutputs(outputs, EngineStats())))
"""


@pytest.fixture
def heartbeat(script, monkeypatch: pytest.MonkeyPatch) -> None:
    script("from axion.types import FinishReason, SequenceOutput\n" + ONE_STEP)
    monkeypatch.setattr(WorkerEngine, "ping_interval_s", 0.1)
    monkeypatch.setattr(WorkerEngine, "idle_limit_s", 0.5)


@pytest.mark.usefixtures("heartbeat")
async def test_an_engine_that_hangs_is_killed_and_started_again(config: EngineConfig):
    engine = await spawn_engine(config)
    try:
        pid = engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            assert await collect(engine, "a", [1], SamplingParams(max_tokens=1)) == [7]
        assert engine.health().restarts == 1
        assert not psutil.pid_exists(pid)
    finally:
        await engine.stop(0)


@pytest.mark.usefixtures("heartbeat")
async def test_a_long_step_is_no_hang(config: EngineConfig):
    engine = await spawn_engine(config)
    try:
        assert await collect(engine, "a", [1], SamplingParams(max_tokens=2)) == [7]
        assert engine.health().restarts == 0
    finally:
        await engine.stop(0)


@pytest.mark.usefixtures("heartbeat")
async def test_a_step_without_end_is_a_hang(config: EngineConfig, monkeypatch):
    monkeypatch.setattr(WorkerEngine, "busy_limit_s", 1.0)
    engine = await spawn_engine(config)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(EngineUnavailableError):
                await collect(engine, "a", [1], SamplingParams(max_tokens=600))
        assert engine.health().restarts == WorkerEngine.MAX_RESUMES
    finally:
        await engine.stop(0)


async def test_restarts_leave_nothing_behind(
    config: EngineConfig, script, short_path: Path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    engine = await spawn_engine(config)
    try:
        num_fds = psutil.Process().num_fds()
        for n in range(1, 6):
            os.kill(engine.pid, signal.SIGKILL)
            await until(lambda n=n: engine.health().restarts == n)
            await until(lambda: engine.health().state is BackendState.READY)
        assert psutil.Process().num_fds() == num_fds
        assert len(list(short_path.glob("axion-*"))) == 1
    finally:
        await engine.stop(0)
    assert not list(short_path.glob("axion-*"))


async def test_a_start_that_is_cancelled_twice_leaves_nothing_behind(
    config: EngineConfig, script, short_path: Path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    marker = short_path / "pid"
    script(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    starting = asyncio.create_task(spawn_engine(config))
    await until(lambda: marker.exists() and marker.read_text() != "")
    starting.cancel()
    await asyncio.wait((starting,), timeout=0.2)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: not psutil.pid_exists(int(marker.read_text())), timeout_s=3)
    await until(lambda: not list(short_path.glob("axion-*")), timeout_s=3)


async def test_a_worker_that_is_killed_while_it_loads_says_so(config: EngineConfig, script):
    script("os.kill(os.getpid(), 9)\n")
    with pytest.raises(ModelLoadError, match="memory"):
        await spawn_engine(config)
