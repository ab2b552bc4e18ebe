from __future__ import annotations

import itertools

import pytest

from axion.bench.workload import Kind, Planned, Prompts, Range, arrivals, plan

KINDS = (Kind(Range(8, 16), Range(4, 4), 3.0), Kind(Range(100, 100), Range(1, 2)))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("128:64", Kind(Range(128, 128), Range(64, 64))),
        ("100-1024:1-8*2.5", Kind(Range(100, 1024), Range(1, 8), 2.5)),
    ],
)
def test_a_kind_is_written_as_tokens_in_and_out(text: str, kind: Kind):
    assert Kind.parse(text) == kind


@pytest.mark.parametrize(
    "text", ["", "128", "0:1", "8-4:1", "a:1", "1:1*0", "1:1*x", "1:-1", "²:1"]
)
def test_what_is_no_kind_is_refused(text: str):
    with pytest.raises(ValueError, match=r"tokens|above 0|IN:OUT"):
        Kind.parse(text)


def test_a_seed_gives_the_same_requests_and_another_seed_others():
    def first(seed: int) -> list[Planned]:
        return list(itertools.islice(plan(KINDS, shared_prefix=0.5, seed=seed), 200))

    requests = first(1)
    assert requests == first(1) != first(2)
    for request in requests:
        kind = KINDS[request.kind]
        assert kind.prompt_len.low <= request.prompt_len <= kind.prompt_len.high
        assert kind.output_len.low <= request.output_len <= kind.output_len.high
    assert 100 < sum(request.kind == 0 for request in requests) < 190


def test_prompts_share_what_is_asked_and_nothing_else():
    prompts = Prompts(overhead=4.0, tokens_per_word=2.0)
    one, other = (prompts.text(Planned(0, 104, 1, 50, seed)).split() for seed in (1, 2))
    assert len(one) == len(other) == 50
    assert one[:25] == other[:25]
    assert one[25:] != other[25:]


def test_arrivals_come_at_the_rate_and_not_evenly():
    times = list(itertools.islice(arrivals(50.0), 2000))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert min(gaps) >= 0
    mean = times[-1] / len(times)
    assert mean == pytest.approx(1 / 50, rel=0.1)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.15)  # as of an exponential distribution
