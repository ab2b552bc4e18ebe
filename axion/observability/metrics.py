"""What Prometheus scrapes: one registry per app, every label from a set the server bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from axion.types import BackendHealth, BackendState

# Seconds. From a small model on a GPU to a large one on a CPU behind a full queue.
TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

_ENGINE_GAUGES = {
    "num_running": ("axion_engine_running_sequences", "Sequences being computed"),
    "num_waiting": ("axion_engine_waiting_sequences", "Sequences waiting for a place"),
    "num_blocks_used": ("axion_engine_blocks_used", "KV cache blocks in use"),
    "num_blocks": ("axion_engine_blocks", "KV cache blocks in all"),
}
_ENGINE_COUNTERS = {
    "num_prompt_tokens": ("axion_engine_prompt_tokens", "Prompt tokens taken in"),
    "num_cached_tokens": ("axion_engine_cached_tokens", "Prompt tokens found in the prefix cache"),
    "num_generated_tokens": ("axion_engine_generated_tokens", "Tokens generated"),
    "num_preemptions": ("axion_engine_preemptions", "Sequences preempted for lack of blocks"),
    "num_steps": ("axion_engine_steps", "Engine steps"),
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
        self._backends = _BackendCollector()
        self.registry.register(self._backends)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def render(self, health: Mapping[str, BackendHealth]) -> bytes:
        """The Prometheus text format, with the gauges of the backends' `health` by model name."""
        self._backends.health = health
        return generate_latest(self.registry)


class _BackendCollector(Collector):
    """Reads the backends' own gauges and totals at the time of the scrape."""

    def __init__(self) -> None:
        self.health: Mapping[str, BackendHealth] = {}

    def collect(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily("axion_model_ready", "1 if the model answers", labels=["model"])
        restarts = CounterMetricFamily(
            "axion_engine_restarts", "Restarts of the model's process", labels=["model"]
        )
        for model, health in self.health.items():
            ready.add_metric([model], health.state is BackendState.READY)
            restarts.add_metric([model], health.restarts)
        yield ready
        yield restarts
        yield from self._engine_metrics()

    def _engine_metrics(self) -> Iterator[Metric]:
        families: list[tuple[str, GaugeMetricFamily | CounterMetricFamily]] = [
            (field, GaugeMetricFamily(name, text, labels=["model"]))
            for field, (name, text) in _ENGINE_GAUGES.items()
        ]
        families += [
            (field, CounterMetricFamily(name, text, labels=["model"]))
            for field, (name, text) in _ENGINE_COUNTERS.items()
        ]
        for field, family in families:
            for model, health in self.health.items():
                if health.stats is not None:
                    family.add_metric([model], getattr(health.stats, field))
            yield family
