"""One request inside the engine: its tokens, and how far they are computed."""

from __future__ import annotations

import enum
import hashlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from axion.engine.draft_pace import Pace
from axion.engine.ngram_index import NgramIndex
from axion.types import FinishReason, SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    from llguidance import LLMatcher


class SequenceStatus(enum.Enum):
    WAITING = enum.auto()
    RUNNING = enum.auto()
    PREEMPTED = enum.auto()
    FINISHED = enum.auto()


@dataclass(slots=True)
class SequenceState:
    """Where the state of a running sequence is.

    Attributes:
        slot: its own, where the state goes.
        source: where the state is now: its own slot, one that was kept, or 0 at the beginning.
        checkpoints: number of tokens to the slot in which the state after them is to be kept.
    """

    slot: int
    source: int = 0
    checkpoints: dict[int, int] = field(default_factory=dict)


class Sequence:
    """Token ids of one request and the blocks that hold their keys and values.

    A sequence has no phase. Tokens `[0, num_computed_tokens)` are in the KV cache, and each
    step computes some of the rest; when the two counts meet, the next token is sampled.

    Args:
        token_ids: the prompt, and what was generated for it before.
        num_generated: tokens at the end of `token_ids` that were.

    Attributes:
        token_ids: prompt, then output.
        num_computed_tokens: tokens whose keys and values are in the KV cache.
        num_cached_tokens: prompt tokens that the prefix cache supplied at first admission.
        block_tables: ids of the blocks that hold the sequence, in order, for each group of layers;
            0 for one behind the group's window. Arrays, because numpy copies these fast.
        block_hashes: chained hash of every full block, each covering all tokens before it.
        num_full_blocks: how many blocks are computed as far as the block manager knows.
        seed: start of the sequence's own random stream.
        state: where its recurrent state is, while it runs and if the model has one.
        num_lost_states: how often it had to begin anew because a step without memory spoilt that.
        matcher: where the output is in the grammar that it must follow.
        pace: how many tokens are drafted for it.
        ngrams: where its tokens stood before.
        priority: a lower one is served first.
        arrival: its place in the order of arrival, set by the scheduler; no other has the same.
        arrived_s: when that was, by the scheduler's clock.
        num_prompt_logprobs: prompt tokens, from the second on, whose log probabilities are known.
        prompt_logprobs: those of them that have not been handed out yet.
    """

    __slots__ = (
        "arrival",
        "arrived_s",
        "block_hashes",
        "block_tables",
        "eos_token_ids",
        "finish_reason",
        "matcher",
        "ngrams",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_full_blocks",
        "num_lost_states",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "pace",
        "params",
        "priority",
        "prompt_logprobs",
        "request_id",
        "root_hash",
        "seed",
        "state",
        "status",
        "stop_token_ids",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        token_ids: list[int],
        params: SamplingParams,
        *,
        seed: int,
        eos_token_ids: tuple[int, ...] = (),
        cache_salt: str = "",
        priority: int = 0,
        num_generated: int = 0,
    ) -> None:
        assert len(token_ids) > num_generated, "a sequence has at least one prompt token"
        self.request_id = request_id
        self.params = params
        self.seed = seed
        self.priority = priority
        self.arrival = 0
        self.arrived_s = 0.0
        self.token_ids = list(token_ids)
        self.num_prompt_tokens = len(token_ids) - num_generated
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        # They are out before the first token is.
        self.num_prompt_logprobs = self.num_prompt_tokens - 1 if num_generated else 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.block_tables: list[array[int]] = []
        self.block_hashes: list[bytes] = []
        self.num_full_blocks = 0
        self.state: SequenceState | None = None
        self.num_lost_states = 0
        self.root_hash = hashlib.blake2b(cache_salt.encode(), digest_size=16).digest()
        self.eos_token_ids = () if params.ignore_eos else eos_token_ids
        self.stop_token_ids = frozenset(self.eos_token_ids) | frozenset(params.stop_token_ids)
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.matcher: LLMatcher | None = None
        self.pace = Pace()
        self.ngrams = NgramIndex()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def has_unknown_token(self) -> bool:
        """Whether the last token is still being sampled; see `Scheduler.ahead_of`."""
        return self.token_ids[-1] < 0

    @property
    def needs_its_tokens(self) -> bool:
        """Whether the host must know a token before the next can be sampled."""
        params = self.params
        return (
            self.matcher is not None
            or params.has_penalty
            or any(len(word) > 1 for word in params.bad_words_token_ids)
        )

    @property
    def scores_prompt(self) -> bool:
        """Whether log probabilities of prompt tokens are wanted and not all known yet."""
        return (
            self.params.prompt_logprobs is not None
            and self.num_prompt_logprobs < self.num_prompt_tokens - 1
        )

    def take_prompt_logprobs(self) -> list[TokenLogprobs] | None:
        """Hand out what is known and has not been; None if there is nothing."""
        logprobs, self.prompt_logprobs = self.prompt_logprobs, []
        return logprobs or None

    def extend_block_hashes(self, block_size: int) -> None:
        """Hash every full block that has no hash yet.

        A cryptographic hash, because a collision would show one request's cache to another.
        """
        previous = self.block_hashes[-1] if self.block_hashes else self.root_hash
        for start in range(
            len(self.block_hashes) * block_size, self.num_tokens - block_size + 1, block_size
        ):
            tokens = array("q", self.token_ids[start : start + block_size]).tobytes()
            previous = hashlib.blake2b(previous + tokens, digest_size=16).digest()
            self.block_hashes.append(previous)

    def append(self, token_id: int, max_model_len: int, *, is_final: bool = False) -> None:
        """Add an output token and decide whether it ends the sequence.

        Args:
            is_final: the sequence's grammar lets nothing follow.
        """
        self.token_ids.append(token_id)
        is_long_enough = self.num_output_tokens >= self.params.min_tokens
        if is_final or (token_id in self.stop_token_ids and is_long_enough):
            self.finish_reason = FinishReason.STOP
        elif self.is_at_limit(max_model_len):
            self.finish_reason = FinishReason.LENGTH

    def is_at_limit(self, max_model_len: int) -> bool:
        """Whether nothing may follow the tokens that there are."""
        max_tokens = self.params.max_tokens
        return self.num_tokens >= max_model_len or (
            max_tokens is not None and self.num_output_tokens >= max_tokens
        )

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request_id!r}, {self.status.name.lower()}, "
            f"computed {self.num_computed_tokens}/{self.num_tokens}, "
            f"blocks {self.num_full_blocks} full)"
        )
