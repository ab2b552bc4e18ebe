"""The whole engine on a device: its tokens, what it waits for, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import axion
from axion.engine import kv_cache
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.quantization.float8 import Float8Kernel
from axion.quantization.int8 import Int8Kernel
from axion.types import EngineConfig, SamplingParams
from tests.gpu.conftest import IS_INTERPRETED
from tests.parity.checkpoints import save_tiny

pytestmark = pytest.mark.skipif(IS_INTERPRETED, reason="a device is needed")

DEMO = Path(axion.__file__).parent / "demo" / "model"
MAX_NUM_SEQS = 6
# More than run at once, of different lengths, so that batches of every size decode.
PROMPTS = {f"{n} tokens": [(7 * i * i + n) % 90 + 3 for i in range(n)] for n in range(2, 40, 4)}
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def make_core(path: Path, device: torch.device, **options: Any) -> EngineCore:
    options = {"kv_cache_bytes": 2**26, "dtype": "float32", **options}
    return load_engine(
        EngineConfig(
            model_path=str(path),
            device=str(device),
            max_model_len=256,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=48,
            **options,
        )
    )


def answers(core: EngineCore, params: SamplingParams = GREEDY) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {name: [] for name in PROMPTS}
    for name, prompt in PROMPTS.items():
        assert core.add(AddRequest(name, prompt, params)) is None
    while core.has_unfinished:
        for output in core.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
    return tokens


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt-oss", "demo"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "demo":
        return DEMO
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param))


def test_the_tokens_are_those_of_the_cpu(path: Path, device: torch.device) -> None:
    expected = answers(make_core(path, torch.device("cpu")))
    assert answers(make_core(path, device)) == expected


@pytest.mark.parametrize("option", ["cuda_graphs", "async_scheduling"])
def test_what_saves_time_changes_no_token(option: str, path: Path, device: torch.device) -> None:
    usual = make_core(path, device)
    plain = make_core(path, device, **{option: False})
    assert plain.runner.graphs is None or option != "cuda_graphs"
    assert answers(usual) == answers(plain)


def test_what_the_device_gives_up_comes_back_from_host_memory(
    path: Path, device: torch.device
) -> None:
    roomy = make_core(path, device)
    expected = answers(roomy)
    num_blocks = roomy.scheduler.block_manager.max_blocks_held(256) + 1
    bytes_per_block = roomy.info.kv_cache_bytes // roomy.info.num_blocks
    tight = make_core(
        path, device, kv_cache_bytes=num_blocks * bytes_per_block, kv_offload_bytes=2**26
    )
    assert answers(tight) == expected
    with no_waiting():
        assert answers(tight) == expected
    assert tight.stats.num_blocks_restored > 0
    assert tight.stats.num_blocks_used == 0


def test_decode_steps_are_replayed(device: torch.device) -> None:
    core = make_core(DEMO, device, dtype="bfloat16")
    assert core.runner.graphs is not None, "the log says why not"


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_quantized_experts_are_captured(
    quantization: str, device: torch.device, tmp_path: Path
) -> None:
    path = save_tiny("mixtral", tmp_path)
    core = make_core(path, device, quantization=quantization)
    assert core.runner.graphs is not None, "the log says why not"
    eager = make_core(path, device, quantization=quantization, cuda_graphs=False)
    expected = answers(eager)
    with no_waiting():
        assert answers(core) == answers(eager) == expected


def test_a_draft_model_changes_no_token(device: torch.device) -> None:
    core = make_core(DEMO, device, draft_model_path=str(DEMO))
    assert core.proposer._runner.graphs is not None, "the log says why not"
    assert answers(core) == answers(make_core(DEMO, device))
    assert core.stats.num_draft_tokens > 0


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(top_k=20, top_p=0.9, min_p=0.05, seed=1, max_tokens=20, logprobs=3),
        SamplingParams(min_tokens=8, logit_bias={5: 2.0}, max_tokens=12, prompt_logprobs=2),
        SamplingParams(repetition_penalty=1.1, presence_penalty=0.2, max_tokens=12),
    ],
    ids=["greedy", "drawn", "biased", "penalised"],
)
def test_a_step_waits_for_nothing_but_its_tokens(
    params: SamplingParams, cuda_graphs: bool, device: torch.device
) -> None:
    core = make_core(
        DEMO, device, dtype="bfloat16", cuda_graphs=cuda_graphs, enable_prefix_caching=False
    )
    expected = answers(core, params)  # kernels are compiled, libraries have what they work with
    with no_waiting():
        assert answers(core, params).keys() == expected.keys()


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_the_kv_cache_takes_its_share_of_what_is_free(
    cuda_graphs: bool, device: torch.device
) -> None:
    torch.cuda.empty_cache()
    free = kv_cache.free_memory(device)
    core = make_core(
        DEMO, device, kv_cache_bytes=None, memory_fraction=0.5, cuda_graphs=cuda_graphs
    )
    # At most as much as some full sets of sequences need, which is little for this model.
    assert 0 < core.info.kv_cache_bytes <= free / 2
    torch.cuda.synchronize(device)
    taken = free - kv_cache.free_memory(device)
    assert core.info.kv_cache_bytes <= taken < free
    assert answers(core)


@pytest.mark.parametrize("num_rows", [1, 17, 64, 300])
def test_int8_weights_multiply_as_what_they_mean(num_rows: int, device: torch.device) -> None:
    torch.manual_seed(0)
    codes = torch.randint(-127, 128, (96, 128), dtype=torch.int8)
    scale = torch.rand(96) / 100
    kernel = Int8Kernel(codes.to(device), scale.to(device), rounds_input=True)
    x = torch.randn(num_rows, 128, dtype=torch.bfloat16)
    expected = x.float() @ (codes.float() * scale[:, None]).T
    found = kernel(x.to(device)).float().cpu()
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("num_rows", [1, 17, 64, 300])
@pytest.mark.parametrize("block", [(1, 128), (32, 32)], ids=["by row", "by block"])
def test_fp8_weights_multiply_as_what_they_mean(
    block: tuple[int, int], num_rows: int, device: torch.device
) -> None:
    torch.manual_seed(0)
    codes = torch.randn(96, 128).to(torch.float8_e4m3fn)
    scale = torch.rand(96 // block[0], 128 // block[1]) / 10 + 0.01
    kernel = Float8Kernel(codes.to(device), scale.to(device), block)
    x = torch.randn(num_rows, 128, dtype=torch.bfloat16)
    wide = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    expected = x.float() @ (codes.float() * wide).T
    found = kernel(x.to(device)).float().cpu()
    # Where the device multiplies eight bits, the inputs are rounded to them as well.
    assert (found - expected).norm() < 0.05 * expected.norm()
