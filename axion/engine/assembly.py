"""Puts an engine together: the model, the memory beside it, and those who use the two."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from axion.engine import cuda_graph, kv_cache
from axion.engine.batch_invariant import BatchInvariantModel, make_batch_invariant
from axion.engine.block_manager import BlockManager
from axion.engine.cache_plan import CachePlan
from axion.engine.core import EngineCore
from axion.engine.cuda_graph import CudaGraphRunner
from axion.engine.device import take_device, take_threads
from axion.engine.draft_model import DraftModel, load_draft_model
from axion.engine.eos_tokens import eos_token_ids
from axion.engine.host_memory import STAGING_BYTES, HostMemory, check_there_is_room, rows_of
from axion.engine.host_pool import HostPool
from axion.engine.loader import load_model
from axion.engine.model_runner import ModelRunner
from axion.engine.recorded_steps import RecordedSteps, can_record
from axion.engine.scheduler import Scheduler
from axion.engine.speculative import NgramProposer, Proposer
from axion.engine.state_slots import StateSlots
from axion.engine.structured import StructuredOutput
from axion.layers import cpu_kernels
from axion.layers.context import KVCache, State
from axion.models.base import CausalLM
from axion.quantization.layers import num_parameters, unknown_formats
from axion.text.grammar import GrammarCompiler
from axion.text.tokenizer import load_tokenizer
from axion.types import EngineConfig, EngineInfo

logger = logging.getLogger("axion.engine")

_SAME_MEMORY = (
    "KV_OFFLOAD_GIB brings nothing on a CPU, where the KV cache is in the same memory: give the "
    "KV cache more (KV_CACHE_GIB), and nothing has to be copied"
)


def load_engine(
    config: EngineConfig, on_progress: Callable[[int, int], None] | None = None
) -> EngineCore:
    """Load a model, and take the memory that it is to be served with.

    Args:
        on_progress: called with (bytes read, bytes in all) while the weights load.

    Raises:
        ModelLoadError: the model cannot be served here; the message says why.
    """
    take_threads(config.num_threads)
    device = take_device(config.device)
    path = Path(config.model_path)
    model = load_model(
        path,
        device=device,
        dtype=config.dtype,
        quantization=config.quantization,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
        on_progress=on_progress,
    )
    draft_model = None
    if config.speculative == "auto" and config.draft_model_path:
        draft_model = load_draft_model(config, model, device)
    schedules_ahead = _can_schedule_ahead(config, model, draft_model, device)
    max_model_len = min(config.max_model_len, model.max_length())
    max_num_batched_tokens = max(config.max_num_batched_tokens, config.max_num_seqs)
    # Of a sequence that two steps compute, the first is booked when the second is scheduled.
    max_unbooked = max_num_batched_tokens * (1 + schedules_ahead)
    plan = CachePlan(
        config, model, draft_model, device, max_model_len=max_model_len, max_chunk=max_unbooked
    )
    models = [model] if draft_model is None else [model, draft_model]
    _warn_of_waiting(models, device)
    caches, draft_caches, graphs = _fill_memory(config, models, plan, device, max_model_len)
    computing: CausalLM | BatchInvariantModel = model
    if config.deterministic:
        computing = make_batch_invariant(
            model, caches, block_size=config.block_size, max_num_seqs=config.max_num_seqs
        )
        max_num_batched_tokens = min(max_num_batched_tokens, computing.sizes[-1])
    states = plan.allocate_slots()
    host_blocks, host_states = plan.host_pools(config.kv_offload_bytes)
    if config.kv_offload_bytes:
        logger.info(
            "host memory: room for %d blocks and %d states",
            host_blocks.num_places,
            host_states.num_places,
        )
    new_runner = partial(
        ModelRunner,
        block_size=config.block_size,
        device=device,
        host_memory=_host_memory(host_blocks, host_states, caches + draft_caches, states, device),
    )
    steps: Mapping[CausalLM, CudaGraphRunner | RecordedSteps] = graphs
    if not config.deterministic and not graphs:
        steps = {each: RecordedSteps(each) for each in models if can_record(each, device)}
    runner = new_runner(computing, caches, states, graphs=steps.get(model))
    cpu_kernels.prepare(model.dtype, device, runner.warm_up)
    proposer: Proposer | None = None
    if draft_model is not None:
        draft_runner = new_runner(draft_model, draft_caches, [], graphs=steps.get(draft_model))
        cpu_kernels.prepare(draft_model.dtype, device, draft_runner.warm_up)
        proposer = DraftModel(draft_runner, model.config.vocab_size)
    elif config.speculative == "ngram":
        proposer = _ngram_proposer(model)
    scheduler = Scheduler(
        _block_manager(config, plan, host_blocks, host_states, max_chunk=max_unbooked),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        target_itl_s=config.target_itl_s,
    )
    info = _info(config, model, plan, device, max_model_len=max_model_len)
    return EngineCore(
        info,
        model,
        runner,
        scheduler,
        proposer=proposer,
        grammars=GrammarCompiler(
            partial(load_tokenizer, path),
            vocab_size=info.vocab_size,
            eos_token_ids=info.eos_token_ids,
        ),
        structured=StructuredOutput(
            vocab_size=info.vocab_size,
            eos_token_ids=info.eos_token_ids,
            max_num_seqs=config.max_num_seqs,
            num_threads=1 if device.type == "cpu" else os.cpu_count() or 1,
        ),
        schedules_ahead=schedules_ahead,
    )


def _can_schedule_ahead(
    config: EngineConfig, model: CausalLM, draft_model: CausalLM | None, device: torch.device
) -> bool:
    """Whether a step is prepared while the one before it is being computed."""
    # It would begin with the recurrent states that the one before has left, and drafts follow
    # the last token, which must be known.
    speculates = draft_model is not None or config.speculative == "ngram"
    if model.state_specs() or speculates:
        return False
    is_wanted = config.async_scheduling
    return device.type == "cuda" if is_wanted is None else is_wanted


def _warn_of_waiting(models: list[CausalLM], device: torch.device) -> None:
    """Say where a step waits for the device, and why there are no graphs of it."""
    if not cuda_graph.has_graphs(device):
        return
    for model in models:
        if unknown := unknown_formats(model):
            logger.warning(
                "%s has experts in a format that Axion has no kernel for on CUDA (%s): each of "
                "their layers waits for the GPU, and decode steps are not captured in CUDA graphs",
                type(model).__name__,
                ", ".join(unknown),
            )


def _fill_memory(
    config: EngineConfig,
    models: list[CausalLM],
    plan: CachePlan,
    device: torch.device,
    max_model_len: int,
) -> tuple[list[KVCache], list[KVCache], dict[CausalLM, CudaGraphRunner]]:
    """Measure what is free and take it: caches of the model's layers and of the draft model's,
    and graphs of the decode steps of those that have any.

    Args:
        models: the model and, perhaps, the draft model.
    """
    may_capture = (
        config.cuda_graphs
        and not config.deterministic
        and plan.format is None  # which Triton's attention does not read
    )
    captured = [
        model
        for model in models
        if may_capture and cuda_graph.can_capture(model, device, max_model_len)
    ]

    def new_graphs(caches: tuple[list[KVCache], ...]) -> dict[CausalLM, CudaGraphRunner]:
        return {
            model: CudaGraphRunner(
                model,
                own,
                block_size=config.block_size,
                num_groups=len(plan.layout.groups),
                max_num_seqs=config.max_num_seqs,
                max_model_len=max_model_len,
                device=device,
            )
            for model, own in zip(models, caches, strict=False)
            if model in captured
        }

    num_graph_bytes = 0
    num_offload_bytes = config.kv_offload_bytes
    if num_offload_bytes:
        check_there_is_room(num_offload_bytes)
        if device.type == "cpu":
            logger.warning(_SAME_MEMORY)
        else:
            num_offload_bytes = 2 * STAGING_BYTES  # for blocks, and for states
    if captured and config.kv_cache_bytes is None:
        measured = [graphs.measure() for graphs in new_graphs(plan.allocate_blocks(1)).values()]
        if None in measured:
            captured = []
        else:
            num_graph_bytes = sum(filter(None, measured))
    plan.fill(
        kv_cache.budget(
            device,
            config.kv_cache_bytes,
            config.memory_fraction,
            num_reserved_bytes=num_graph_bytes + num_offload_bytes,
        )
    )
    # Graphs write what belongs to no sequence to a block of their own.
    caches = plan.allocate_blocks(plan.num_blocks + bool(captured))
    graphs = new_graphs(caches)
    if graphs:
        new_graph = cuda_graph.graph_pool()
        if not all(runner.capture(new_graph) for runner in graphs.values()):
            graphs = {}
    return *caches, graphs


def _host_memory(
    blocks: HostPool,
    states: HostPool,
    caches: list[KVCache],
    layer_states: list[State],
    device: torch.device,
) -> list[HostMemory]:
    """Behind the pools that have places."""
    of_blocks = (tensor for cache in caches for tensor in (cache.k, cache.v))
    of_states = (tensor for state in layer_states for tensor in state.values())
    return [
        HostMemory(pool, rows_of(tensors), device)
        for pool, tensors in ((blocks, of_blocks), (states, of_states))
        if pool.num_places
    ]


def _ngram_proposer(model: CausalLM) -> NgramProposer | None:
    if model.can_rewind:
        return NgramProposer()
    logger.warning("no speculation: the model cannot take back what it has computed")
    return None


def _block_manager(
    config: EngineConfig,
    plan: CachePlan,
    host_blocks: HostPool,
    host_states: HostPool,
    *,
    max_chunk: int,
) -> BlockManager:
    states = None
    if plan.num_slots:
        states = StateSlots(
            plan.num_slots - 1,
            config.block_size,
            max_num_seqs=config.max_num_seqs,
            host=host_states,
        )
    return BlockManager(
        plan.num_blocks,
        config.block_size,
        windows=plan.layout.windows,
        max_chunk=max_chunk,
        enable_prefix_caching=config.enable_prefix_caching,
        states=states,
        host=host_blocks,
    )


def _info(
    config: EngineConfig,
    model: CausalLM,
    plan: CachePlan,
    device: torch.device,
    *,
    max_model_len: int,
) -> EngineInfo:
    return EngineInfo(
        architecture=type(model).__name__,
        device=str(device),
        dtype=str(model.dtype).removeprefix("torch."),
        vocab_size=model.config.vocab_size,
        max_model_len=max_model_len,
        num_blocks=plan.num_blocks,
        block_size=config.block_size,
        num_parameters=num_parameters(model),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        kv_cache_bytes=plan.num_bytes,
        eos_token_ids=eos_token_ids(Path(config.model_path)),
    )
