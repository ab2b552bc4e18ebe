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

from axion.engine import kv_cache, state_cache
from axion.engine.batch_invariant import BatchInvariantModel, make_batch_invariant
from axion.engine.block_manager import BlockManager
from axion.engine.draft_model import DraftModel, load_draft_model
from axion.engine.loader import eos_token_ids, load_model, resolve_device
from axion.engine.messages import AddRequest
from axion.engine.model_runner import ModelRunner
from axion.engine.scheduler import SampledToken, ScheduledSequence, Scheduler
from axion.engine.sequence import Sequence
from axion.engine.speculative import NgramProposer, Proposer, verify
from axion.engine.state_slots import StateSlots
from axion.engine.structured import StructuredOutput, advance
from axion.errors import AxionError, ModelLoadError
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
            kv_cache.lay_out, specs, block_size=block_size, max_chunk=max_chunk, dtype=stored_dtype
        )
        budget = kv_cache.budget(self.device, config.kv_cache_bytes, config.memory_fraction)
        layout = lay_out(max_model_len)
        state_specs, num_slots, bytes_per_slot = self.model.state_specs(), 0, 0
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
        caches = kv_cache.allocate(
            specs, layout.groups, num_blocks, block_size, dtype=stored_dtype, device=self.device
        )
        kv_caches = [cache._replace(format=format) for cache in caches]
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
        self.runner = new_runner(model, kv_caches[:num_layers], states)
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
            max_chunk=max_chunk,
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
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_steps = 0

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished or bool(self._compiling)

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
        """Compute one step for what is running; a failure ends only the sequences in it."""
        refused = self._add_compiled() if self._compiling else []
        started = time.perf_counter()
        scheduled = self.scheduler.schedule()
        if not scheduled:
            return refused
        self._num_steps += 1
        try:
            step = self._execute(scheduled)
            if step is not None:
                scheduled, rows = step
                sampling = [entry for entry in scheduled if entry.samples]
                sampled = [verify(*pair, advance) for pair in zip(sampling, rows, strict=True)]
        except Exception:  # the engine outlives whatever a forward pass raises
            logger.exception("a step of %d sequences failed", len(scheduled))
            return refused + self.scheduler.fail(scheduled, _STEP_FAILED)
        if step is None:
            return refused + self.scheduler.retreat(scheduled)
        self.scheduler.observe(scheduled, time.perf_counter() - started)
        outputs = refused + self.scheduler.update(scheduled, sampled)
        self._num_generated_tokens += sum(len(output.token_ids) for output in outputs)
        if not self.scheduler.has_unfinished:
            self.scheduler.check_integrity()
        return outputs

    def _execute(
        self, scheduled: list[ScheduledSequence]
    ) -> tuple[list[ScheduledSequence], list[list[SampledToken]]] | None:
        """What was computed, drafts included, and the tokens of each row; None where memory was
        short, and nothing has changed."""
        try:
            if self.proposer is not None:
                scheduled = self.scheduler.speculate(scheduled, self.proposer)
            return scheduled, self.runner.execute(scheduled, self.structured.mask)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            logger.warning("a step of %d sequences found no memory: %s", len(scheduled), error)
        # Not before here: an exception holds what its step had allocated.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

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
