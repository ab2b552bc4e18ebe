"""Whether a server is after hours of load what it was before."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from axion.bench.client import Target


class Snapshot(NamedTuple):
    """Of the server's /metrics, summed over its models; None: it does not say."""

    memory_bytes: float | None
    blocks_used: float | None
    in_flight: float | None


class Verdict(msgspec.Struct, kw_only=True):
    """What a soak found.

    Attributes:
        memory_growth: of the memory of the server and its engines, from the end of the warm-up to
            the end of the run, as a share; None: not known.
        faults: in one sentence each; none: it passed.
    """

    memory_growth: float | None
    blocks_used: float | None
    faults: list[str]


# Allocators and caches that fill may grow a little for long.
MAX_GROWTH = 0.10
# Until then every kind of request has been answered, and what is allocated once is.
WARM_UP_S = 60.0
# In less a leak does not stand out from what fills.
MIN_MEMORY_S = 300.0

_MEMORY = ("process_resident_memory_bytes", "axion_engine_peak_memory_bytes")
_BLOCKS = "axion_engine_blocks_used"
_IN_FLIGHT = "axion_requests_in_flight"


async def snapshot(target: Target) -> Snapshot:
    """Raises:
    BenchError: the server has no /metrics.
    """
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(await target.get_text("/metrics")):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    memory = [found[name] for name in _MEMORY if name in found]
    return Snapshot(sum(memory) if memory else None, found.get(_BLOCKS), found.get(_IN_FLIGHT))


def warm_up_s(duration_s: float) -> float | None:
    """When memory is looked at first: after a tenth of the run. None: it is too short to tell
    anything of memory."""
    return None if duration_s < MIN_MEMORY_S else max(WARM_UP_S, duration_s / 10)


def judge(early: Snapshot | None, late: Snapshot, num_failed: int) -> Verdict:
    """Args:
    early: after the warm-up, when everything has been used once; None: memory is not judged.
    late: when nothing is asked any more.
    """
    faults: list[str] = []
    growth = None
    if early is not None and early.memory_bytes and late.memory_bytes is not None:
        growth = late.memory_bytes / early.memory_bytes - 1
        if growth > MAX_GROWTH:
            faults.append(f"memory grew by {growth:.0%}, more than {MAX_GROWTH:.0%}")
    if late.blocks_used:
        faults.append(f"{late.blocks_used:.0f} blocks of the KV cache are still in use")
    if late.in_flight:
        faults.append(f"{late.in_flight:.0f} requests are still in flight")
    if num_failed:
        faults.append(f"{num_failed} requests failed")
    return Verdict(memory_growth=growth, blocks_used=late.blocks_used, faults=faults)
