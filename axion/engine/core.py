"""The engine itself: requests in, one step at a time, outputs out. Knows no sockets."""

from __future__ import annotations

import logging
import os
import resource
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import chain

import torch
from llguidance import LLMatcher

from axion.engine.memory_ahead import MemoryAhead
from axion.engine.messages import AddRequest
from axion.engine.model_runner import LaunchedStep, ModelRunner
from axion.engine.scheduler import Scheduler
from axion.engine.sequence import Sequence, SequenceStatus
from axion.engine.speculative import Proposer, verify
from axion.engine.step import ScheduledSequence
from axion.engine.structured import StructuredOutput, advance
from axion.errors import AxionError
from axion.models.base import CausalLM
from axion.text.grammar import GrammarCompiler
from axion.types import EngineInfo, EngineStats, FinishReason, SequenceOutput

logger = logging.getLogger("axion.engine")

_STEP_FAILED = "The engine could not compute this request. The server's log has the cause."

_NO_MATCH = "What was generated of this answer before does not match its grammar."

_COMPILE_WAIT_S = 0.01
# How it is said where torch's own error is not raised: by the C library, by CUDA, by cuBLAS.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")


class EngineCore:
    """One model, its KV cache and its scheduler: what `load_engine` has put together.

    Args:
        proposer: drafts what may come next; None: nothing is drafted.
        grammars: what requests have to follow, compiled beside the steps.
        schedules_ahead: a step is prepared while the one before it is being computed.
    """

    def __init__(
        self,
        info: EngineInfo,
        model: CausalLM,
        runner: ModelRunner,
        scheduler: Scheduler,
        *,
        proposer: Proposer | None,
        grammars: GrammarCompiler,
        structured: StructuredOutput,
        schedules_ahead: bool,
    ) -> None:
        self.info = info
        self.model = model
        self.runner = runner
        self.scheduler = scheduler
        self.proposer = proposer
        self.grammars = grammars
        self.structured = structured
        self._schedules_ahead = schedules_ahead
        self._memory_ahead = MemoryAhead(
            runner.kv_caches, scheduler.block_manager, scheduler.max_num_batched_tokens
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
        block_manager = self.scheduler.block_manager
        host = block_manager.host
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting) + len(self._compiling),
            num_blocks_used=block_manager.num_used_blocks,
            num_blocks=block_manager.num_blocks,
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

    def use_idle_time(self) -> bool:
        """Do some milliseconds' work for later steps; False: there is none."""
        return not self.has_unfinished and self._memory_ahead.bring_piece()

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
            self._check_device()
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
        if self.runner.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _check_device(self) -> None:
        """
        Raises:
            RuntimeError: a kernel has failed on the device, which computes nothing more for this
                process. In the next one the sequences go on.
        """
        if self.runner.device.type == "cuda":
            torch.cuda.synchronize(self.runner.device)

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
            self._check_device()
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
        params = request.params
        for name, token_ids in (
            ("The prompt", request.token_ids),
            ("logit_bias", list(params.logit_bias)),
            ("allowed_token_ids", params.allowed_token_ids),
            ("bad_words_token_ids", [*chain.from_iterable(params.bad_words_token_ids)]),
        ):
            if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
                return f"{name} has a token id outside the vocabulary of {vocab_size} tokens."
        return None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    )
