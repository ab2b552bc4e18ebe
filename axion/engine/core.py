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

from axion.engine import cuda_graph, kv_cache, state_cache
from axion.engine.batch_invariant import BatchInvariantModel, make_batch_invariant
from axion.engine.block_manager import BlockManager
from axion.engine.cuda_graph import CudaGraphRunner
from axion.engine.draft_model import DraftModel, load_draft_model
from axion.engine.loader import eos_token_ids, load_model, resolve_device
from axion.engine.messages import AddRequest
from axion.engine.model_runner import LaunchedStep, ModelRunner
from axion.engine.scheduler import ScheduledSequence, Scheduler
from axion.engine.sequence import Sequence, SequenceStatus
from axion.engine.speculative import NgramProposer, Proposer, verify
from axion.engine.state_slots import StateSlots
from axion.engine.structured import StructuredOutput, advance
from axion.errors import AxionError, ModelLoadError
from axion.layers.context import KVCache
from axion.layers.kv_format import KV_FORMATS
from axion.models.base import CausalLM
from axion.quantization.base import num_parameters
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
        self.device = resolve_device(config.device)
        if self.device.index is not None:  # streams, events and graphs are the current device's
            torch.cuda.set_device(self.device)
        path = Path(config.model_path)
        self.model = load_model(
            path,
            device=self.device,
            dtype=config.dtype,
            quantization=config.quantization,
            allow_pickle=config.allow_pickle,
            on_progress=on_progress,
        )
        dtype = self.model.dtype
        max_model_len = min(config.max_model_len, self.model.max_length())
        max_chunk = max(config.max_num_batched_tokens, config.max_num_seqs)
        block_size = config.block_size
        draft_model = None
        if config.speculative == "auto" and config.draft_model_path:
            draft_model = load_draft_model(config, self.model, self.device)
        state_specs = self.model.state_specs()
        speculates = draft_model is not None or config.speculative == "ngram"
        # A step begins with the recurrent states that the one before has left, and drafts follow
        # its last token, which must be known.
        self._schedules_ahead = (
            not state_specs
            and not speculates
            and (
                self.device.type == "cuda"
                if config.async_scheduling is None
                else config.async_scheduling
            )
        )
        # Of a sequence that two steps compute, the first is booked when the second is scheduled.
        max_unbooked = max_chunk * (1 + self._schedules_ahead)
        specs = self.model.kv_cache_specs()
        num_layers = len(specs)
        if draft_model is not None:
            specs += draft_model.kv_cache_specs()
        format = None
        if config.kv_cache_dtype != "auto":
            format = KV_FORMATS[config.kv_cache_dtype](dtype)
            specs = [kv_cache.stored_spec(spec, format) for spec in specs]
        stored_dtype = dtype if format is None else torch.uint8
        lay_out = partial(
            kv_cache.lay_out,
            specs,
            block_size=block_size,
            max_chunk=max_unbooked,
            dtype=stored_dtype,
        )
        layout = lay_out(max_model_len)

        def allocate(num_blocks: int) -> list[KVCache]:
            caches = kv_cache.allocate(
                specs, layout.groups, num_blocks, block_size, dtype=stored_dtype, device=self.device
            )
            return [cache._replace(format=format) for cache in caches]

        captures = (
            config.cuda_graphs
            and not config.deterministic
            and not state_specs
            and format is None  # which Triton's attention does not read
            and cuda_graph.can_capture(self.device)
        )
        graph_runner = partial(
            CudaGraphRunner,
            self.model,
            block_size=block_size,
            num_groups=len(layout.groups),
            max_num_seqs=config.max_num_seqs,
            max_model_len=max_model_len,
            device=self.device,
        )
        num_graph_bytes = 0
        if captures and config.kv_cache_bytes is None:
            measured = graph_runner(allocate(1)[:num_layers]).measure()
            captures, num_graph_bytes = measured is not None, measured or 0
        budget = kv_cache.budget(
            self.device,
            config.kv_cache_bytes,
            config.memory_fraction,
            num_reserved_bytes=num_graph_bytes,
        )
        num_slots, bytes_per_slot = 0, 0
        if state_specs:
            bytes_per_slot = state_cache.bytes_per_slot(state_specs, dtype)
            num_slots = state_cache.num_slots_that_fit(
                bytes_per_slot,
                max_num_seqs=config.max_num_seqs,
                num_kept=2 * config.max_num_seqs if config.enable_prefix_caching else 0,
                num_kv_bytes=layout.num_blocks_per_sequence * layout.bytes_per_block,
                num_bytes=budget,
            )
            budget -= num_slots * bytes_per_slot
            logger.info(
                "recurrent states: %d of %.1f MiB each", num_slots - 1, bytes_per_slot / 2**20
            )
        num_blocks = kv_cache.num_blocks_that_fit(
            lay_out,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            num_bytes=budget,
        )
        # Graphs write what belongs to no sequence to a block of their own.
        kv_caches = allocate(num_blocks + captures)
        graphs = graph_runner(kv_caches[:num_layers]) if captures else None
        if graphs is not None and not graphs.capture():
            graphs = None
        model: CausalLM | BatchInvariantModel = self.model
        max_num_batched_tokens = max_chunk
        if config.deterministic:
            if state_specs:
                raise ModelLoadError(
                    f"DETERMINISTIC cannot be kept for {type(self.model).__name__}: what a "
                    "recurrent state is rounded to depends on how a prompt is cut. Unset it."
                )
            model = make_batch_invariant(
                self.model,
                kv_caches[:num_layers],
                block_size=block_size,
                max_num_seqs=config.max_num_seqs,
            )
            max_num_batched_tokens = min(max_chunk, model.sizes[-1])
        new_runner = partial(ModelRunner, block_size=block_size, device=self.device)
        states = state_cache.allocate(state_specs, num_slots, dtype=dtype, device=self.device)
        self.runner = new_runner(model, kv_caches[:num_layers], states, graphs=graphs)
        self.proposer: Proposer | None = None
        if draft_model is not None:
            draft_runner = new_runner(draft_model, kv_caches[num_layers:], [])
            self.proposer = DraftModel(draft_runner, self.model.config.vocab_size)
        elif config.speculative == "ngram" and self.model.can_rewind:
            self.proposer = NgramProposer()
        elif config.speculative == "ngram":
            logger.warning("no speculation: the model cannot take back what it has computed")
        self.block_manager = BlockManager(
            num_blocks,
            block_size,
            windows=layout.windows,
            max_chunk=max_unbooked,
            enable_prefix_caching=config.enable_prefix_caching,
            states=StateSlots(num_slots - 1, block_size, max_num_seqs=config.max_num_seqs)
            if num_slots
            else None,
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
            dtype=str(dtype).removeprefix("torch."),
            vocab_size=self.model.config.vocab_size,
            max_model_len=max_model_len,
            num_blocks=num_blocks,
            block_size=block_size,
            num_parameters=num_parameters(self.model),
            weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
            kv_cache_bytes=num_blocks * layout.bytes_per_block + num_slots * bytes_per_slot,
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

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished or bool(self._compiling) or self._launched is not None

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting) + len(self._compiling),
            num_blocks_used=self.block_manager.num_used_blocks,
            num_blocks=self.block_manager.num_blocks,
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
            sampled = [
                verify(entry, rows, advance)
                for entry, rows in zip(launched.sampling, launched.collect(), strict=True)
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
        return self.scheduler.update(scheduled, sampled)

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
