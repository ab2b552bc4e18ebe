from __future__ import annotations

from xml.etree import ElementTree

import pytest

from axion.bench.plot import svg
from axion.bench.report import Figures, Report, Sample, Spread, changes, figures
from axion.bench.soak import Snapshot, judge, warm_up_s


def test_percentiles():
    spread = Spread.of(float(i) for i in range(1, 101))
    assert spread == Spread(mean=50.5, p50=50.0, p95=95.0, p99=99.0, max=100.0)
    assert Spread.of([]) is None


def sample(start: float, ttft: float = 0.2, step: float = 0.1, tokens: int = 3) -> Sample:
    chunks = [ttft + step * i for i in range(tokens)]
    return Sample(
        kind=0,
        start=start,
        ttft=ttft,
        latency=chunks[-1],
        prompt_tokens=10,
        output_tokens=tokens,
        chunks=chunks,
    )


def test_figures_of_a_run():
    failed = Sample(kind=0, start=0.5, error="500: broken")
    left = Sample(kind=0, start=0.5, left=True, ttft=0.1, chunks=[0.1], latency=0.1)
    found = figures([sample(0.0), sample(0.6, ttft=0.2), failed, left], concurrency=2)
    assert (found.num_ok, found.num_failed, found.num_left) == (2, 1, 1)
    assert found.duration_s == pytest.approx(1.0)
    assert found.output_tokens_per_s == pytest.approx(6.0)
    assert found.total_tokens_per_s == pytest.approx(26.0)
    assert found.ttft is not None
    assert found.ttft.max == pytest.approx(0.2)
    assert found.itl is not None
    assert found.tpot is not None
    assert found.itl.p50 == pytest.approx(0.1) == found.tpot.p99
    assert found.errors == {"500: broken": 1}


def test_tokens_without_text_take_time_too():
    silent = sample(0.0)
    silent.output_tokens, silent.latency = 9, 1.0
    found = figures([silent], concurrency=1)
    assert found.tpot is not None
    assert found.tpot.p50 == pytest.approx(0.1)


def run(speed: float, concurrency: int = 1) -> Figures:
    return figures([sample(0.0, 0.2 / speed, 0.1 / speed)], concurrency=concurrency)


def test_twice_as_fast_is_twice_as_good_in_every_figure():
    found = changes(run(1.0), run(2.0))
    assert {change.name for change in found} >= {"output tokens/s", "ttft p50", "tpot p99"}
    assert all(change.gain == pytest.approx(2.0) for change in found)


def test_the_plot_is_svg_with_a_point_for_each_run():
    report = Report(
        url="http://x",
        model="a<b",
        created=0,
        kinds=["8:8"],
        shared_prefix=0.0,
        seed=0,
        keeps_length=True,
        runs=[run(1.0), run(0.5, 8), run(0.2, 32)],
    )
    root = ElementTree.fromstring(svg(report))
    circles = root.iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(circles)) == 3 * (3 + 3 + 1)


@pytest.mark.parametrize(
    ("late", "num_failed", "fault"),
    [
        (Snapshot(2e9, 0, 0), 0, "memory"),
        (Snapshot(1e9, 3, 0), 0, "blocks"),
        (Snapshot(1e9, 0, 2), 0, "in flight"),
        (Snapshot(1e9, 0, 0), 1, "failed"),
        (Snapshot(1.05e9, 0, 0), 0, None),
    ],
)
def test_a_soak_finds_what_is_not_as_before(late: Snapshot, num_failed: int, fault: str | None):
    faults = judge(Snapshot(1e9, 5, 8), late, num_failed).faults
    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


def test_memory_is_judged_after_a_warm_up_and_not_in_a_short_soak():
    assert warm_up_s(30) is None
    assert warm_up_s(300) == 60
    assert warm_up_s(1800) == 180
    assert judge(None, Snapshot(9e9, 0, 0), 0).faults == []
    assert judge(None, Snapshot(9e9, 0, 0), 1).faults == ["1 requests failed"]
