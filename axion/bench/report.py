"""From samples to figures, and from figures to a verdict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import msgspec

from axion.types import EngineInfo


class Sample(msgspec.Struct, kw_only=True):
    """One request; times in seconds.

    Attributes:
        start: when it was due, from the beginning of the run. In an open loop that is before it is
            sent, if this program was late: the wait counts.
        ttft: from `start` to the first token.
        chunks: of each chunk with tokens, when it came, from `start`.
        latency: from `start` to the end.
        error: why it failed; None: it did not.
        left: it was abandoned on purpose.
    """

    kind: int
    start: float
    ttft: float | None = None
    latency: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    chunks: list[float] = []
    error: str | None = None
    left: bool = False


class Spread(msgspec.Struct, frozen=True):
    """Of many values, in seconds."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None of no values. A percentile is the smallest value that so many are not above."""
        known = sorted(values)
        if not known:
            return None
        p50, p95, p99 = (known[math.ceil(share * len(known)) - 1] for share in (0.50, 0.95, 0.99))
        return cls(sum(known) / len(known), p50, p95, p99, known[-1])


class Figures(msgspec.Struct, kw_only=True):
    """Of one run.

    Attributes:
        concurrency, rate: of the load.
        num_ok, num_failed, num_left: requests by their end; who left is in neither of the others.
        duration_s: from the first request to the end of the last.
        output_tokens_per_s: of the requests that were answered, as the next ones.
        ttft: time to first token.
        itl: from a chunk with tokens to the next.
        tpot: of each request, the mean time of a token after the first.
        latency: to the end of the answer.
        errors: what failed, and how often.
    """

    concurrency: int
    rate: float | None = None
    num_ok: int
    num_failed: int
    num_left: int
    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft: Spread | None
    itl: Spread | None
    tpot: Spread | None
    latency: Spread | None
    errors: dict[str, int] = {}


class Report(msgspec.Struct, kw_only=True):
    """What a measurement leaves, as JSON.

    Attributes:
        created: seconds since 1970.
        kinds: of requests, as they were asked for.
        keeps_length: whether the server was told to go on until `max_tokens` (`ignore_eos`).
    """

    url: str
    model: str
    created: int
    kinds: list[str]
    shared_prefix: float
    seed: int
    keeps_length: bool
    runs: list[Figures]


def figures(samples: Sequence[Sample], *, concurrency: int, rate: float | None = None) -> Figures:
    """Figures of a run, which has at least one sample."""
    ok = [sample for sample in samples if sample.error is None and not sample.left]
    failed = [sample for sample in samples if sample.error is not None]
    duration = max((sample.start + sample.latency for sample in samples), default=0.0)
    prompt_tokens = sum(sample.prompt_tokens for sample in ok)
    output_tokens = sum(sample.output_tokens for sample in ok)
    errors: dict[str, int] = {}
    for sample in failed:
        reason = str(sample.error)[:200]
        errors[reason] = errors.get(reason, 0) + 1
    return Figures(
        concurrency=concurrency,
        rate=rate,
        num_ok=len(ok),
        num_failed=len(failed),
        num_left=sum(sample.left for sample in samples),
        duration_s=duration,
        requests_per_s=len(ok) / duration if duration else 0.0,
        output_tokens_per_s=output_tokens / duration if duration else 0.0,
        total_tokens_per_s=(prompt_tokens + output_tokens) / duration if duration else 0.0,
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(sample.cached_tokens for sample in ok),
        output_tokens=output_tokens,
        ttft=Spread.of(sample.ttft for sample in ok if sample.ttft is not None),
        itl=Spread.of(b - a for sample in ok for a, b in itertools.pairwise(sample.chunks)),
        tpot=Spread.of(
            # To the end, not to the last text: special tokens count too, and have none.
            (sample.latency - sample.ttft) / (sample.output_tokens - 1)
            for sample in ok
            if sample.ttft is not None and sample.output_tokens > 1
        ),
        latency=Spread.of(sample.latency for sample in ok),
        errors=errors,
    )


STEP_PARTS = ("schedule", "prepare", "forward", "sample")


class EngineFigures(Figures, kw_only=True):
    """Of one batch size, without a server; times are of the round with the median throughput.

    Attributes:
        prefill_tokens_per_s: of the prompts, until all of the batch have their first token.
        decode_tokens_per_s: of the tokens after the first, once all have it.
        step: where the time of a decode step goes, by `STEP_PARTS`,
            from steps of their own, since looking costs time.
        decode_share: of the time of a decode step, what reading the weights alone would take at
            the machine's memory bandwidth; 1 is the limit. None: not known.
        prefill_share: likewise of the prompts' matrix products at the machine's matrix rate.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    step: dict[str, Spread]
    decode_share: float | None
    prefill_share: float | None


class Limits(msgspec.Struct, frozen=True):
    """What a device reaches at its best.

    Attributes:
        read: bytes a second from memory.
        matrix: operations a second (a multiplication and an addition are two) of large matrix
            products, by number format.
    """

    read: float
    matrix: dict[str, float]


class EngineReport(msgspec.Struct, kw_only=True):
    """What a measurement of the engine leaves, as JSON."""

    model: str
    created: int
    kinds: list[str]
    quantization: str
    info: EngineInfo
    limits: Limits
    runs: list[EngineFigures]


class Change(msgspec.Struct, frozen=True):
    """One figure of two runs.

    Attributes:
        gain: how many times better the new one is; below 1 it is worse.
    """

    name: str
    old: float
    new: float
    gain: float


def changes(old: Figures, new: Figures) -> list[Change]:
    """Of the figures that both have."""
    found = []
    pairs: list[tuple[str, float | None, float | None, bool]] = [
        ("output tokens/s", old.output_tokens_per_s, new.output_tokens_per_s, True),
        ("requests/s", old.requests_per_s, new.requests_per_s, True),
    ]
    for name in ("ttft", "tpot", "itl", "latency"):
        one, other = getattr(old, name), getattr(new, name)
        pairs += [
            (f"{name} {cut}", getattr(one, cut, None), getattr(other, cut, None), False)
            for cut in ("p50", "p99")
        ]
    for name, before, after, is_rate in pairs:
        if before and after:
            found.append(Change(name, before, after, after / before if is_rate else before / after))
    return found
