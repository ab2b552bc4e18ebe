"""What Prometheus scrapes: one registry per app, every label from a set the server bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from axion.types import (
    BATCH_SIZE_BUCKETS,
    QUEUE_TIME_BUCKETS,
    BackendHealth,
    BackendState,
    EngineStats,
    PoolingHealth,
    PoolingStats,
)

# Seconds. From a small model on a GPU to a large one on a CPU behind a full queue.
TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

_ENGINE_GAUGES = {
    "num_running": ("axion_engine_running_sequences", "Sequences being computed"),
    "num_waiting": ("axion_engine_waiting_sequences", "Sequences waiting for a place"),
    "num_blocks_used": ("axion_engine_blocks_used", "KV cache blocks in use"),
    "num_blocks": ("axion_engine_blocks", "KV cache blocks in all"),
    "num_host_blocks_used": (
        "axion_engine_host_blocks_used",
        "KV cache blocks that host memory holds",
    ),
    "num_host_blocks": (
        "axion_engine_host_blocks",
        "KV cache blocks that host memory has room for",
    ),
    "peak_memory_bytes": (
        "axion_engine_peak_memory_bytes",
        "The most memory that the engine's process has had resident",
    ),
}
_ENGINE_COUNTERS = {
    "num_prompt_tokens": ("axion_engine_prompt_tokens", "Prompt tokens taken in"),
    "num_cached_tokens": ("axion_engine_cached_tokens", "Prompt tokens found in the prefix cache"),
    "num_generated_tokens": ("axion_engine_generated_tokens", "Tokens generated"),
    "num_preemptions": ("axion_engine_preemptions", "Sequences preempted for lack of memory"),
    "num_blocks_offloaded": (
        "axion_engine_blocks_offloaded",
        "KV cache blocks copied to host memory before they were overwritten",
    ),
    "num_blocks_restored": (
        "axion_engine_blocks_restored",
        "KV cache blocks copied back from host memory",
    ),
    "num_steps": ("axion_engine_steps", "Engine steps"),
    "num_draft_tokens": ("axion_engine_draft_tokens", "Tokens computed on a guess"),
    "num_accepted_tokens": ("axion_engine_accepted_tokens", "Guessed tokens that came true"),
    "num_out_of_memory": (
        "axion_engine_out_of_memory",
        "Engine steps computed again in smaller ones, for want of memory",
    ),
}

_POOLING_GAUGES = {
    "num_waiting": ("axion_pooling_waiting_texts", "Texts that wait for a batch"),
}
_POOLING_COUNTERS = {
    "num_texts": ("axion_pooling_texts", "Texts embedded, or documents scored"),
    "num_dropped": ("axion_pooling_dropped_texts", "Texts whose caller left before their turn"),
    "num_tokens": ("axion_pooling_tokens", "Tokens computed, without padding"),
    "num_padding_tokens": ("axion_pooling_padding_tokens", "Padding computed beside them"),
}


class Metrics:
    """The metrics of one app.

    Label values are route templates, status codes and names of served models; never a string
    that a client chose.
    """

    def __init__(
        self,
        num_in_flight: Callable[[], float],
        num_cached: Callable[[], float],
        num_cached_bytes: Callable[[], float],
    ) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "axion_requests",
            "Requests answered; status 499 is a client that left",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self.request_duration = Histogram(
            "axion_request_duration_seconds",
            "From the request's headers to the end of the answer",
            ["endpoint"],
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self.time_to_first_token = Histogram(
            "axion_time_to_first_token_seconds",
            "From the request's headers to its first token",
            ["model"],
            buckets=TTFT_BUCKETS,
            registry=self.registry,
        )
        self.inter_token_latency = Histogram(
            "axion_inter_token_latency_seconds",
            "From one chunk of an answer to the next",
            ["model"],
            buckets=ITL_BUCKETS,
            registry=self.registry,
        )
        Gauge(
            "axion_requests_in_flight", "Generation requests admitted", registry=self.registry
        ).set_function(num_in_flight)
        self.cache_requests = Counter(
            "axion_response_cache_requests",
            "Whole chat answers by what the response cache did: hit, miss or bypass",
            ["result"],
            registry=self.registry,
        )
        Gauge(
            "axion_response_cache_entries", "Answers in the response cache", registry=self.registry
        ).set_function(num_cached)
        Gauge(
            "axion_response_cache_bytes", "Size of the answers in it", registry=self.registry
        ).set_function(num_cached_bytes)
        self._routed = Counter(
            "axion_backend_requests",
            "Requests given to each engine of a model",
            ["model", "engine"],
            registry=self.registry,
        )
        self._failovers = Counter(
            "axion_failovers",
            "Requests that an engine failed on or was too busy for, before its answer or in the"
            " middle of it",
            ["model", "engine", "when"],
            registry=self.registry,
        )
        self._shadowed = Counter(
            "axion_shadow_requests",
            "Copies of requests, by whether the engine answered the same",
            ["model", "engine", "result"],
            registry=self.registry,
        )
        self._queue_seconds = Histogram(
            "axion_queue_seconds",
            "From a request's arrival in the queue of an engine to its being given to it",
            ["model", "engine"],
            buckets=QUEUE_TIME_BUCKETS,
            registry=self.registry,
        )
        self._backends = _BackendCollector()
        self.registry.register(self._backends)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def routed(self, model: str, engine: str, waited_s: float) -> None:
        """A request goes to an engine, for which it has waited."""
        self._routed.labels(model, engine).inc()
        self._queue_seconds.labels(model, engine).observe(waited_s)

    def failed_over(self, model: str, engine: str, *, started: bool) -> None:
        """An engine has failed on a request, whose answer it had started or not."""
        self._failovers.labels(model, engine, "during" if started else "before").inc()

    def shadowed(self, model: str, engine: str, result: str) -> None:
        """A copy of a request came out `same`, `different` or `failed`."""
        self._shadowed.labels(model, engine, result).inc()

    def render(
        self, health: Mapping[str, BackendHealth], pooling: Sequence[PoolingHealth] = ()
    ) -> bytes:
        """The Prometheus text format, with the gauges of the backends' `health` by model name."""
        self._backends.health = health
        self._backends.pooling = pooling
        return generate_latest(self.registry)


class _BackendCollector(Collector):
    """Reads the backends' own gauges and totals at the time of the scrape."""

    def __init__(self) -> None:
        self.health: Mapping[str, BackendHealth] = {}
        self.pooling: Sequence[PoolingHealth] = ()

    def collect(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily("axion_model_ready", "1 if the model answers", labels=["model"])
        restarts = CounterMetricFamily(
            "axion_engine_restarts", "Restarts of the model's process", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "axion_queue_length",
            "Requests that wait before they are given to an engine",
            labels=["model", "engine"],
        )
        limit = GaugeMetricFamily(
            "axion_concurrency_limit",
            "Requests that an engine is given at once",
            labels=["model", "engine"],
        )
        for model, health in self.health.items():
            for engine in health.engines:
                waiting.add_metric([model, engine.engine], engine.num_waiting)
                limit.add_metric([model, engine.engine], engine.limit)
            ready.add_metric([model], health.state is BackendState.READY)
            restarts.add_metric([model], health.restarts)
        for pooling in self.pooling:
            if pooling.state is not None:
                ready.add_metric([pooling.name], pooling.state is BackendState.READY)
                restarts.add_metric([pooling.name], pooling.restarts)
        yield ready
        yield restarts
        yield waiting
        yield limit
        yield from self._engine_metrics()
        yield from self._pooling_metrics()

    def _engine_metrics(self) -> Iterator[Metric]:
        stats = {name: health.stats for name, health in self.health.items() if health.stats}
        yield from _families(GaugeMetricFamily, _ENGINE_GAUGES, stats)
        yield from _families(CounterMetricFamily, _ENGINE_COUNTERS, stats)
        yield _histogram(
            HistogramMetricFamily(
                "axion_engine_queue_seconds",
                "From a sequence's arrival in the engine to its first step",
                labels=["model"],
            ),
            QUEUE_TIME_BUCKETS,
            {name: (engine.queue_times, engine.queue_seconds) for name, engine in stats.items()},
        )

    def _pooling_metrics(self) -> Iterator[Metric]:
        stats = {health.name: health.stats for health in self.pooling if health.stats}
        yield from _families(GaugeMetricFamily, _POOLING_GAUGES, stats)
        yield from _families(CounterMetricFamily, _POOLING_COUNTERS, stats)
        yield _histogram(
            HistogramMetricFamily(
                "axion_pooling_batch_size", "Texts computed together", labels=["model"]
            ),
            BATCH_SIZE_BUCKETS,
            {name: (pooling.batch_sizes, pooling.num_texts) for name, pooling in stats.items()},
        )


def _histogram(
    family: HistogramMetricFamily,
    bounds: Sequence[float],
    counts: Mapping[str, tuple[Sequence[int], float]],
) -> Metric:
    """`family` with each model's counts by bucket, and sum."""
    for model, (by_bucket, total) in counts.items():
        buckets = zip((*map(str, bounds), "+Inf"), itertools.accumulate(by_bucket), strict=True)
        family.add_metric([model], list(buckets), sum_value=total)
    return family


def _families(
    family: type[GaugeMetricFamily | CounterMetricFamily],
    metrics: Mapping[str, tuple[str, str]],
    stats: Mapping[str, EngineStats | PoolingStats],
) -> Iterator[Metric]:
    """One metric for each field of the models' `stats`."""
    for field, (name, text) in metrics.items():
        metric = family(name, text, labels=["model"])
        for model, values in stats.items():
            metric.add_metric([model], getattr(values, field))
        yield metric
