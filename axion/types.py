"""What the parts of Axion say to each other. Plain data, msgpack-encodable, no torch."""

from __future__ import annotations

import enum
import itertools
import math
from typing import Literal

import msgspec

from axion.errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_SEED = 2**63 - 1
MAX_GRAMMAR_CHARS = 2**17


class FinishReason(enum.StrEnum):
    """Why a sequence ended. `STOP` and `LENGTH` are OpenAI's `finish_reason`s."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must match, from its first token to its last.

    Attributes:
        kind: `json_schema`; `regex`, which the whole answer matches; `choice`, a JSON list of
            strings; `grammar` in Lark's or GBNF's syntax; `llguidance`, that library's own form.
        text: at most `MAX_GRAMMAR_CHARS` characters.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar", "llguidance"]
    text: str


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence's tokens are chosen, and when it ends.

    The transforms are applied in this order: `logit_bias`, `repetition_penalty` (CTRL,
    arXiv:1909.05858), `presence_penalty` and `frequency_penalty` (OpenAI), `allowed_token_ids`,
    `bad_words_token_ids`, `min_tokens`, `grammar`, `temperature`, `top_k`, `top_p`
    (arXiv:1904.09751), `min_p` (arXiv:2407.01082).

    Attributes:
        max_tokens: most tokens to generate; None means until the context is full. With 0 the
            prompt is computed and nothing generated.
        min_tokens: no end-of-sequence or stop before this many generated tokens.
        temperature: 0 is greedy.
        top_k: 0 is off.
        seed: the same seed gives the same tokens, whatever else is in the batch.
        stop: strings that end the text; they are not part of it unless
            `include_stop_str_in_output`.
        stop_token_ids: token ids that end the sequence, besides the model's own.
        allowed_token_ids: nothing but these is generated, no end of the sequence either; empty is
            off.
        bad_words_token_ids: none of these sequences of tokens is generated: the last token of one
            does not follow the others.
        logprobs: number of alternatives reported for each token (0: the chosen token only);
            None reports nothing. Taken from the model's own distribution, before any transform.
        grammar: what the output must match. Where nothing may follow, the sequence ends, even
            before `min_tokens` and with `ignore_eos`.
        prompt_logprobs: the same for each token of the prompt but the first.

    Raises:
        InvalidRequestError: a value is out of range; `param` names it.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    grammar: Grammar | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        check = _check_range
        if self.max_tokens is not None:
            check("max_tokens", self.max_tokens, 0, 2**31 - 1)
        longest = 2**31 - 1 if self.max_tokens is None else self.max_tokens
        check("min_tokens", self.min_tokens, 0, longest)
        check("temperature", self.temperature, 0.0, 2.0)
        check("top_k", self.top_k, 0, 2**31 - 1)
        check("top_p", self.top_p, 0.0, 1.0)
        check("min_p", self.min_p, 0.0, 1.0)
        check("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above=True)
        check("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for token_id, bias in self.logit_bias.items():
            check("logit_bias", token_id, 0, 2**31 - 1)
            check("logit_bias", bias, -100.0, 100.0)
        if self.seed is not None:
            check("seed", self.seed, -MAX_SEED - 1, MAX_SEED)
        if len(self.stop) > MAX_STOP_STRINGS or not all(self.stop):
            raise InvalidRequestError(
                f"stop must be at most {MAX_STOP_STRINGS} non-empty strings.", param="stop"
            )
        for token_id in self.stop_token_ids:
            check("stop_token_ids", token_id, 0, 2**31 - 1)
        for token_id in self.allowed_token_ids:
            check("allowed_token_ids", token_id, 0, 2**31 - 1)
        if not all(self.bad_words_token_ids):
            raise InvalidRequestError(
                "bad_words_token_ids must have at least one token in each word.",
                param="bad_words_token_ids",
            )
        for token_id in itertools.chain.from_iterable(self.bad_words_token_ids):
            check("bad_words_token_ids", token_id, 0, 2**31 - 1)
        if self.logprobs is not None:
            check("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.grammar is not None and len(self.grammar.text) > MAX_GRAMMAR_CHARS:
            raise InvalidRequestError(
                f"grammar must be at most {MAX_GRAMMAR_CHARS} characters long, "
                f"got {len(self.grammar.text)}.",
                param="grammar",
            )
        if self.prompt_logprobs is not None:
            check("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)

    @property
    def is_deterministic(self) -> bool:
        """Whether the same prompt gives the same tokens every time."""
        return self.temperature == 0 or self.seed is not None

    @property
    def has_penalty(self) -> bool:
        """Whether the next token depends on those before through a penalty."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )

    @property
    def forbids_tokens(self) -> bool:
        """Whether some tokens are never generated, or not after some others."""
        return bool(self.allowed_token_ids or self.bad_words_token_ids)


def _check_range(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    if not (low < value if above else low <= value) or not value <= high or math.isnan(value):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        raise InvalidRequestError(
            f"{name} must be {bound} and at most {high:g}, got {value}.", param=name
        )


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities at one position.

    Attributes:
        logprob: of the chosen token.
        top: the most likely `(token_id, logprob)` pairs, best first.
        rank: of a prompt's token: how many are as likely as it or likelier; None of generated ones.
    """

    logprob: float
    top: list[tuple[int, float]]
    rank: int | None = None


class SequenceOutput(msgspec.Struct, array_like=True):
    """What one engine step produced for one sequence.

    Attributes:
        token_ids: new tokens of this step; an end-of-sequence token is included.
        logprobs: one entry a token, when asked for.
        finish_reason: set on the last output of a sequence.
        stop_token_id: the end-of-sequence or stop token that ended it, if one did.
        num_cached_tokens: prompt tokens taken from the prefix cache.
        error: set with `FinishReason.ERROR`; safe to show to a client.
        prompt_logprobs: of the next prompt tokens, from the second on, when asked for. All of
            them are there before or with the first generated token.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process needs to know to serve one model.

    Attributes:
        model_path: folder of the local snapshot.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto` (the checkpoint's own where the device computes it well), `float32`,
            `bfloat16` or `float16`.
        quantization: what plain weights are quantized to as they are loaded: `int8`, `int4`,
            `fp8`, or `none`.
        max_model_len: prompt and output tokens of one sequence; the model's own limit applies too.
        max_num_seqs: sequences computed in one step.
        max_num_batched_tokens: token budget of one step.
        target_itl_s: seconds from one token of a stream to its next that prompts computed beside
            it should leave; None: prompts take the whole budget.
        block_size: tokens in one block of the KV cache.
        kv_cache_bytes: size of the KV cache; None measures what is free.
        kv_cache_dtype: how keys and values are stored: `auto` (as the weights are computed), `fp8`
            or `int8`.
        kv_offload_bytes: host memory for blocks and states that the KV cache gives up; 0: none.
        memory_fraction: share of the free memory that may be used when measuring.
        num_threads: CPU threads; None: one a core, as many as a container may have.
        cuda_graphs: on CUDA, decode steps are captured at the start and replayed.
        async_scheduling: the next step is prepared while one is computed; None: on CUDA.
        allow_pickle: weights in pytorch_model.bin may be loaded.
        trust_remote_code: Python that comes with the model may be run, where neither Axion nor
            transformers has the architecture.
        speculative: what guesses tokens ahead: `auto`, the draft model if there is one; `ngram`,
            the sequence's own earlier tokens; or `off`.
        draft_model_path: folder of a small model of the same vocabulary; empty: there is none.
        deterministic: a request gets the same bits in whatever batch it is computed.
    """

    model_path: str
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    max_model_len: int = 4096
    max_num_seqs: int = 10
    max_num_batched_tokens: int = 2048
    target_itl_s: float | None = None
    block_size: int = 16
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    kv_offload_bytes: int = 0
    memory_fraction: float = 0.9
    enable_prefix_caching: bool = True
    num_threads: int | None = None
    cuda_graphs: bool = True
    async_scheduling: bool | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    speculative: str = "auto"
    draft_model_path: str = ""
    deterministic: bool = False


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is, told once it is ready."""

    architecture: str
    device: str
    dtype: str
    vocab_size: int
    max_model_len: int
    num_blocks: int
    block_size: int
    num_parameters: int
    weight_bytes: int
    kv_cache_bytes: int
    eos_token_ids: tuple[int, ...]


# Upper bounds of the histogram of waiting times, in seconds; what is above has its own bucket.
QUEUE_TIME_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and running totals of one engine.

    Attributes:
        num_host_blocks_used, num_host_blocks: blocks that host memory holds, and has room for.
        num_blocks_offloaded: copied to host memory before they were overwritten.
        num_blocks_restored: copied back.
        num_draft_tokens: computed on a guess.
        num_accepted_tokens: of those, the ones that came true.
        num_out_of_memory: steps that were computed again in smaller ones, for want of memory.
        queue_times: sequences by the time from arrival to their first step, for each of
            `QUEUE_TIME_BUCKETS`, and above the last.
        queue_seconds: sum of these times.
        peak_memory_bytes: the most that its process has had resident.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocks_used: int = 0
    num_blocks: int = 0
    num_host_blocks_used: int = 0
    num_host_blocks: int = 0
    num_blocks_offloaded: int = 0
    num_blocks_restored: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_out_of_memory: int = 0
    queue_times: tuple[int, ...] = (0,) * (len(QUEUE_TIME_BUCKETS) + 1)
    queue_seconds: float = 0.0
    peak_memory_bytes: int = 0


class BackendState(enum.StrEnum):
    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    STOPPED = "stopped"


class EngineHealth(msgspec.Struct, frozen=True):
    """One of the engines of a model.

    Attributes:
        num_waiting: requests that wait before they are given to it.
        limit: requests that it is given at once.
    """

    engine: str
    state: BackendState
    detail: str = ""
    restarts: int = 0
    num_waiting: int = 0
    limit: int = 0


class BackendHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a backend answers, and if not, why.

    Attributes:
        returns_soon: it is being restarted, and takes requests, which wait until it is back.
        engines: of a model, the engines that may serve it, the one that is wanted most first.
    """

    state: BackendState
    detail: str = ""
    returns_soon: bool = False
    info: EngineInfo | None = None
    stats: EngineStats | None = None
    restarts: int = 0
    engines: tuple[EngineHealth, ...] = ()


class PoolingKind(enum.StrEnum):
    """What a model makes of its input."""

    EMBEDDING = "embedding"
    RERANK = "rerank"


class PoolingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a pooling process needs to know to serve one model.

    Attributes:
        name: what clients call the model.
        model: id in fastembed's list, a Hugging Face id, or the path of a folder.
        is_folder: `model` is a path.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: of a native model's weights, as in `EngineConfig`.
        max_batch_size: requests whose texts share a batch.
        max_batch_tokens: tokens in one batch, padding included; a longer text goes alone.
        max_wait_s: longest that a request is passed over for texts that batch better, in seconds.
        num_threads: CPU threads; None leaves the choice to onnxruntime or torch.
    """

    kind: PoolingKind
    name: str
    model: str
    is_folder: bool = False
    device: str = "auto"
    dtype: str = "auto"
    max_batch_size: int = 8
    max_batch_tokens: int = 2048
    max_wait_s: float = 0.05
    num_threads: int | None = None


class PoolingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a pooling model is, told once it is ready.

    Attributes:
        dim: numbers in one embedding; 1 for a reranker's score.
        max_length: most tokens of a text, or of a pair together, with the special tokens.
    """

    dim: int
    max_length: int


# Upper bounds of the histogram of batch sizes, in texts; what is above has a bucket of its own.
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class PoolingStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and running totals of one pooling process; a pair of texts counts as one text.

    Attributes:
        num_waiting: texts that wait for a batch.
        num_dropped: texts that were not computed, because their caller had left.
        num_padding_tokens: computed beside `num_tokens`, to make the texts of a batch equally long.
        batch_sizes: number of batches for each of `BATCH_SIZE_BUCKETS`, and above the last.
    """

    num_waiting: int = 0
    num_texts: int = 0
    num_dropped: int = 0
    num_tokens: int = 0
    num_padding_tokens: int = 0
    num_batches: int = 0
    batch_sizes: tuple[int, ...] = (0,) * (len(BATCH_SIZE_BUCKETS) + 1)


class PoolingHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One model: whether it answers, what it is and what it has done.

    Attributes:
        state: None while nobody has asked for the model.
        num_requests: requests in it.
    """

    name: str
    kind: PoolingKind
    state: BackendState | None = None
    detail: str = ""
    num_requests: int = 0
    restarts: int = 0
    info: PoolingInfo | None = None
    stats: PoolingStats | None = None
