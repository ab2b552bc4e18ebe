"""The engine itself: requests in, one step at a time, outputs out. Knows no sockets."""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path

import torch
from llguidance import LLMatcher

from axion.engine import cuda_graph, kv_cache
from axion.engine.batch_invariant import BatchInvariantModel, make_batch_invariant
from axion.engine.block_manager import BlockManager
from axion.engine.cache_plan import CachePlan
from axion.engine.cuda_graph import CudaGraphRunner
from axion.engine.draft_model import DraftModel, load_draft_model
from axion.engine.host_memory import STAGING_BYTES, HostMemory, check_there_is_room, rows_of
from axion.engine.loader import eos_token_ids, load_model, take_device
from axion.engine.messages import AddRequest
from axion.engine.model_runner import LaunchedStep, ModelRunner
from axion.engine.scheduler import Scheduler
from axion.engine.sequence import Sequence, SequenceStatus
from axion.engine.speculative import NgramProposer, Proposer, verify
from axion.engine.state_slots import StateSlots
from axion.engine.step import ScheduledSequence
from axion.engine.structured import StructuredOutput, advance
from axion.errors import AxionError
from axion.layers.context import KVCache
from axion.models.base import CausalLM
from axion.quantization.layers import num_parameters
from axion.text.grammar import GrammarCompiler
from axion.text.tokenizer import load_tokenizer
from axion.types import (
    EngineConfig,
    EngineInfo,
    EngineStats,
    FinishReason,
    SequenceOutput,
)

logger = logging.getLogger("axion.engine")

_STEP_FAILED = "The engine could not compute this request. The server's log has the cause."

_NO_MATCH = "What was generated of this answer before does not match its grammar."

_SAME_MEMORY = (
    "KV_OFFLOAD_GIB brings nothing on a CPU, where the KV cache is in the same memory: give the "
    "KV cache more (KV_CACHE_GIB), and nothing has to be copied"
)

_COMPILE_WAIT_S = 0.01


class EngineCore:
    """One model, its KV cache and its scheduler.

    Args:
        on_progress: called with (bytes read, bytes in all) while the weights load.

    Raises:
        ModelLoadError: the model cannot be served here; the message says why.
    """

    def __init__(
        self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.device = take_device(config.device)
        path = Path(config.model_path)
        self.model = load_model(
            path,
            device=self.device,
            dtype=config.dtype,
            quantization=config.quantization,
            allow_pickle=config.allow_pickle,
            on_progress=on_progress,
        )
        max_model_len = min(config.max_model_len, self.model.max_length())
        max_chunk = max(config.max_num_batched_tokens, config.max_num_seqs)
        draft_model = None
        if config.speculative == "auto" and config.draft_model_path:
            draft_model = load_draft_model(config, self.model, self.device)
        self._schedules_ahead = self._can_schedule_ahead(config, draft_model)
        # Of a sequence that two steps compute, the first is booked when the second is scheduled.
        max_unbooked = max_chunk * (1 + self._schedules_ahead)
        plan = CachePlan(
            config,
            self.model,
            draft_model,
            self.device,
            max_model_len=max_model_len,
            max_chunk=max_unbooked,
        )
        own_caches, draft_caches, graphs = self._fill_memory(config, plan, max_model_len)
        model: CausalLM | BatchInvariantModel = self.model
        max_num_batched_tokens = max_chunk
        if config.deterministic:
            model = make_batch_invariant(
                self.model,
                own_caches,
                block_size=config.block_size,
                max_num_seqs=config.max_num_seqs,
            )
            max_num_batched_tokens = min(max_chunk, model.sizes[-1])
        states = plan.allocate_slots()
        host_blocks, host_states = plan.host_pools(config.kv_offload_bytes)
        if config.kv_offload_bytes:
            logger.info(
                "host memory: room for %d blocks and %d states",
                host_blocks.num_places,
                host_states.num_places,
            )
        caches = (tensor for cache in (*own_caches, *draft_caches) for tensor in (cache.k, cache.v))
        host_memory = [
            HostMemory(pool, rows_of(tensors), self.device)
            for pool, tensors in (
                (host_blocks, caches),
                (host_states, (tensor for state in states for tensor in state.values())),
            )
            if pool.num_places
        ]
        new_runner = partial(
            ModelRunner,
            block_size=config.block_size,
            device=self.device,
            host_memory=host_memory,
        )
        self.runner = new_runner(model, own_caches, states, graphs=graphs)
        self.proposer: Proposer | None = None
        if draft_model is not None:
            draft_runner = new_runner(draft_model, draft_caches, [])
            self.proposer = DraftModel(draft_runner, self.model.config.vocab_size)
        elif config.speculative == "ngram" and self.model.can_rewind:
            self.proposer = NgramProposer()
        elif config.speculative == "ngram":
            logger.warning("no speculation: the model cannot take back what it has computed")
        self.block_manager = BlockManager(
            plan.num_blocks,
            config.block_size,
            windows=plan.layout.windows,
            max_chunk=max_unbooked,
            enable_prefix_caching=config.enable_prefix_caching,
            states=StateSlots(
                plan.num_slots - 1,
                config.block_size,
                max_num_seqs=config.max_num_seqs,
                host=host_states,
            )
            if plan.num_slots
            else None,
            host=host_blocks,
        )
        self.scheduler = Scheduler(
            self.block_manager,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            target_itl_s=config.target_itl_s,
        )
        parameters = list(self.model.parameters())
        self.info = EngineInfo(
            architecture=type(self.model).__name__,
            device=str(self.device),
            dtype=str(self.model.dtype).removeprefix("torch."),
            vocab_size=self.model.config.vocab_size,
            max_model_len=max_model_len,
            num_blocks=plan.num_blocks,
            block_size=config.block_size,
            num_parameters=num_parameters(self.model),
            weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
            kv_cache_bytes=plan.num_bytes,
            eos_token_ids=eos_token_ids(path),
        )
        vocabulary = {
            "vocab_size": self.info.vocab_size,
            "eos_token_ids": self.info.eos_token_ids,
        }
        self.grammars = GrammarCompiler(partial(load_tokenizer, path), **vocabulary)
        self.structured = StructuredOutput(
            max_num_seqs=config.max_num_seqs,
            num_threads=1 if self.device.type == "cpu" else os.cpu_count() or 1,
            **vocabulary,
        )
        self._compiling: dict[str, tuple[Sequence, Future[LLMatcher]]] = {}
        self._launched: LaunchedStep | None = None
        self._collected_at = 0.0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_steps = 0

    def _can_schedule_ahead(self, config: EngineConfig, draft_model: CausalLM | None) -> bool:
        """Whether a step is prepared while the one before it is being computed."""
        # It would begin with the recurrent states that the one before has left, and drafts follow
        # the last token, which must be known.
        speculates = draft_model is not None or config.speculative == "ngram"
        if self.model.state_specs() or speculates:
            return False
        is_wanted = config.async_scheduling
        return self.device.type == "cuda" if is_wanted is None else is_wanted

    def _fill_memory(
        self, config: EngineConfig, plan: CachePlan, max_model_len: int
    ) -> tuple[list[KVCache], list[KVCache], CudaGraphRunner | None]:
        """Measure what is free and take it: caches of the model's layers and of the draft model's,
        and graphs of decode steps where there are any."""
        captures = (
            config.cuda_graphs
            and not config.deterministic
            and plan.format is None  # which Triton's attention does not read
            and cuda_graph.can_capture(self.model, self.device, max_model_len)
        )
        new_graphs = partial(
            CudaGraphRunner,
            self.model,
            block_size=config.block_size,
            num_groups=len(plan.layout.groups),
            max_num_seqs=config.max_num_seqs,
            max_model_len=max_model_len,
            device=self.device,
        )
        num_graph_bytes = 0
        num_offload_bytes = config.kv_offload_bytes
        if num_offload_bytes:
            check_there_is_room(num_offload_bytes)
            if self.device.type == "cpu":
                logger.warning(_SAME_MEMORY)
            else:
                num_offload_bytes = 2 * STAGING_BYTES  # for blocks, and for states
        if captures and config.kv_cache_bytes is None:
            measured = new_graphs(plan.allocate_blocks(1)[0]).measure()
            captures, num_graph_bytes = measured is not None, measured or 0
        plan.fill(
            kv_cache.budget(
                self.device,
                config.kv_cache_bytes,
                config.memory_fraction,
                num_reserved_bytes=num_graph_bytes + num_offload_bytes,
            )
        )
        # Graphs write what belongs to no sequence to a block of their own.
        own_caches, draft_caches = plan.allocate_blocks(plan.num_blocks + captures)
        graphs = new_graphs(own_caches) if captures else None
        if graphs is not None and not graphs.capture():
            graphs = None
        return own_caches, draft_caches, graphs

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished or bool(self._compiling) or self._launched is not None

    @property
    def stats(self) -> EngineStats:
        host = self.block_manager.host
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting) + len(self._compiling),
            num_blocks_used=self.block_manager.num_used_blocks,
            num_blocks=self.block_manager.num_blocks,
            num_host_blocks_used=host.num_used,
            num_host_blocks=host.num_places,
            num_blocks_offloaded=host.num_saved,
            num_blocks_restored=host.num_loaded,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self.scheduler.num_cached_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=self.scheduler.num_preemptions,
            num_steps=self._num_steps,
            num_draft_tokens=self.scheduler.num_draft_tokens,
            num_accepted_tokens=self.scheduler.num_accepted_tokens,
            num_out_of_memory=self.scheduler.num_out_of_memory,
            queue_times=tuple(self.scheduler.queue_times),
            queue_seconds=self.scheduler.queue_seconds,
            peak_memory_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        )

    def add(self, request: AddRequest) -> SequenceOutput | None:
        """Queue a request; an output comes back at once when it cannot be taken."""
        if (fault := self._fault(request)) is not None:
            return SequenceOutput(
                request.request_id, [], finish_reason=FinishReason.ERROR, error=fault
            )
        params = request.params
        seed = int.from_bytes(os.urandom(8)) if params.seed is None else params.seed
        # Keys rotated for another length must not be shared.
        num_prompt_tokens = len(request.token_ids) - request.num_generated
        rope_key = self.model.rope_cache_key(num_prompt_tokens)
        sequence = Sequence(
            request.request_id,
            request.token_ids,
            params,
            seed=seed,
            eos_token_ids=self.info.eos_token_ids,
            cache_salt=f"{rope_key}:{request.cache_salt}",
            priority=request.priority,
            num_generated=request.num_generated,
        )
        if params.grammar is None:
            self.scheduler.add(sequence)
        else:
            self._compiling[request.request_id] = sequence, self.grammars.submit(params.grammar)
        self._num_prompt_tokens += num_prompt_tokens
        return None

    def abort(self, request_ids: list[str]) -> None:
        """End requests whose client has left; their blocks are free at once."""
        self.scheduler.abort(request_ids)
        for request_id in request_ids:
            self._compiling.pop(request_id, None)

    def step(self) -> list[SequenceOutput]:
        """Compute one step for what is running; a failure ends only the sequences in it.

        The outputs are those of this step, or, where steps are scheduled ahead, of the one before:
        while the device computes one, the next is prepared and launched behind it.
        """
        outputs = self._add_compiled() if self._compiling else []
        previous, self._launched = self._launched, None
        if previous is None:
            launched = self._launch(outputs)
        else:
            with self.scheduler.ahead_of(previous.scheduled, previous.sampling):
                launched = self._launch(outputs, is_ahead=True)
            outputs += self._collect(previous)
        if launched is not None and not self._can_be_followed(launched):
            outputs += self._collect(launched)
            launched = None
        self._launched = launched
        self._num_generated_tokens += sum(len(output.token_ids) for output in outputs)
        if not self.has_unfinished:
            self.scheduler.check_integrity()
        return outputs

    def _launch(
        self, outputs: list[SequenceOutput], *, is_ahead: bool = False
    ) -> LaunchedStep | None:
        """Launch the next step; None if there is none, or if it failed, which goes to `outputs`."""
        scheduled = self.scheduler.schedule()
        if not scheduled:
            return None
        self._num_steps += 1
        try:
            launched = self._launch_within_memory(scheduled)
        except Exception:  # the engine outlives whatever a forward pass raises
            logger.exception("a step of %d sequences failed", len(scheduled))
            outputs += self.scheduler.fail(scheduled, _STEP_FAILED)
            return None
        # Ahead of another step nothing gives way: when that is done, this one is tried again.
        if launched is None and not is_ahead:
            outputs += self.scheduler.retreat(scheduled)
        return launched

    def _launch_within_memory(self, scheduled: list[ScheduledSequence]) -> LaunchedStep | None:
        """The step; None where memory was short, and nothing has changed."""
        try:
            if self.proposer is not None:
                scheduled = self.scheduler.speculate(scheduled, self.proposer)
            return self.runner.launch(scheduled, self.structured.mask)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            logger.warning("a step of %d sequences found no memory: %s", len(scheduled), error)
        # Not before here: an exception holds what its step had allocated.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _can_be_followed(self, launched: LaunchedStep) -> bool:
        """Whether the next step can be prepared before this one's tokens are known."""
        return self._schedules_ahead and not any(
            entry.sequence.needs_its_tokens for entry in launched.sampling
        )

    def _collect(self, launched: LaunchedStep) -> list[SequenceOutput]:
        """Wait for a step, and book what came of the sequences that have not ended meanwhile."""
        try:
            results = launched.collect()
            sampled = [
                verify(entry, rows, advance)
                for entry, rows in zip(launched.sampling, results.sampled, strict=True)
                if entry.sequence.status is SequenceStatus.RUNNING
            ]
        except Exception:  # as above
            logger.exception("a step of %d sequences failed", len(launched.scheduled))
            return self.scheduler.fail(launched.scheduled, _STEP_FAILED)
        # The device began it when it was launched, or when it was done with the one before.
        now = time.perf_counter()
        self.scheduler.observe(launched.scheduled, now - max(launched.started, self._collected_at))
        self._collected_at = now
        scheduled = [
            entry for entry in launched.scheduled if entry.sequence.status is SequenceStatus.RUNNING
        ]
        return self.scheduler.update(scheduled, sampled, results.errors)

    def _add_compiled(self) -> list[SequenceOutput]:
        """Queue the sequences whose grammars are compiled; those of wrong ones end."""
        if not self.scheduler.has_unfinished:
            # Not for long: who waits for the first of them may leave.
            futures = [future for _, future in self._compiling.values()]
            wait(futures, _COMPILE_WAIT_S, FIRST_COMPLETED)
        refused = []
        for request_id, (sequence, future) in list(self._compiling.items()):
            if not future.done():
                continue
            del self._compiling[request_id]
            if (error := future.exception()) is None:
                matcher = future.result()
                if not matcher.consume_tokens(sequence.output_token_ids):
                    message = _NO_MATCH
                elif sequence.num_output_tokens and matcher.is_stopped():
                    refused.append(SequenceOutput(request_id, [], finish_reason=FinishReason.STOP))
                    continue
                else:
                    sequence.matcher = matcher
                    self.scheduler.add(sequence)
                    continue
            elif isinstance(error, AxionError):
                message = f"The grammar cannot be used: {error.message}"
            else:
                logger.error("a grammar could not be compiled", exc_info=error)
                message = _STEP_FAILED
            refused.append(
                SequenceOutput(request_id, [], finish_reason=FinishReason.ERROR, error=message)
            )
        return refused

    def _fault(self, request: AddRequest) -> str | None:
        num_tokens, num_generated = len(request.token_ids), request.num_generated
        longest = self.info.max_model_len - (request.params.max_tokens != 0)
        if not 0 < num_tokens <= longest:
            return f"The prompt must have 1 to {longest} tokens, it has {num_tokens}."
        if not 0 <= num_generated < num_tokens:
            return f"Of {num_tokens} tokens, {num_generated} cannot have been generated."
        limit = request.params.max_tokens
        if num_generated and limit is not None and num_generated >= limit:
            return f"All {limit} tokens that this request may have were generated before."
        vocab_size = self.info.vocab_size
        for name, token_ids in (
            ("The prompt", request.token_ids),
            ("logit_bias", list(request.params.logit_bias)),
        ):
            if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
                return f"{name} has a token id outside the vocabulary of {vocab_size} tokens."
        return None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(text in str(error) for text in ("can't allocate memory", "_ALLOC_FAILED"))
    )
