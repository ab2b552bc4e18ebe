"""Batches: within their bounds, of similar lengths, every text once, nobody waits for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from axion.pooling.batcher import BATCH_COST_TOKENS, Batcher, Item

NEVER = 1e9


def batcher(size: int = 8, tokens: int = 2048, wait_s: float = NEVER) -> Batcher:
    return Batcher(size, tokens, wait_s)


def drain(waiting: Batcher, now: float = 0.0) -> list[list[Item]]:
    batches = []
    while batch := waiting.next_batch(now):
        batches.append(batch)
    return batches


def test_texts_of_many_requests_share_a_batch():
    waiting = batcher()
    for name in "abcd":
        waiting.add(name, [5], now=0)
    assert waiting.next_batch(0) == [("a", 0), ("b", 0), ("c", 0), ("d", 0)]
    assert waiting.next_batch(0) == []


def test_batches_are_sorted_by_length():
    waiting = batcher(size=2)
    waiting.add("a", [100, 4, 101, 5], now=0)
    assert drain(waiting) == [[("a", 1), ("a", 3)], [("a", 0), ("a", 2)]]


def test_a_text_joins_only_where_the_padding_costs_less_than_a_batch():
    waiting = batcher()
    waiting.add("a", [10, 10 + BATCH_COST_TOKENS, 11 + 2 * BATCH_COST_TOKENS], now=0)
    assert [len(batch) for batch in drain(waiting)] == [2, 1]


def test_padding_counts_for_the_token_budget():
    waiting = batcher(tokens=40)
    waiting.add("a", [10, 20, 20], now=0)
    assert drain(waiting) == [[("a", 0), ("a", 1)], [("a", 2)]]


def test_a_text_over_the_budget_goes_alone():
    waiting = batcher(tokens=40)
    waiting.add("a", [50, 50, 45], now=0)
    assert [len(batch) for batch in drain(waiting)] == [1, 1, 1]


def test_short_texts_go_first_until_a_request_has_waited_too_long():
    waiting = batcher(size=1, wait_s=1.0)
    waiting.add("long", [500], now=0.0)
    waiting.add("short", [5, 5, 5], now=0.1)
    assert waiting.next_batch(0.9) == [("short", 0)]
    assert waiting.next_batch(1.0) == [("long", 0)]
    assert waiting.next_batch(1.0) == [("short", 1)]


def test_a_large_request_does_not_hold_up_the_others():
    waiting = batcher(size=4, wait_s=0.0)
    waiting.add("large", [50] * 1000, now=0.0)
    waiting.add("small", [400], now=0.0)
    first, second = waiting.next_batch(1.0), waiting.next_batch(2.0)
    assert {name for name, _ in first} == {"large"}
    assert second == [("small", 0)]


def test_a_dropped_request_is_not_computed():
    waiting = batcher()
    waiting.add("left", [5, 6, 700], now=0)
    waiting.add("stays", [5], now=0)
    assert waiting.drop("left") == 3
    assert waiting.drop("left") == 0
    assert waiting.drop("unknown") == 0
    assert waiting.num_waiting == 1
    assert drain(waiting) == [[("stays", 0)]]


def test_a_request_may_leave_between_two_of_its_batches():
    waiting = batcher(size=1)
    waiting.add("a", [5, 5, 5], now=0)
    waiting.next_batch(0)
    assert waiting.drop("a") == 2
    assert waiting.next_batch(0) == []


@given(
    st.lists(st.lists(st.integers(1, 600), max_size=30), max_size=12),
    st.integers(1, 9),
    st.integers(1, 1500),
    st.sampled_from([0.0, 5.0, NEVER]),
)
def test_every_text_is_computed_once_and_within_the_bounds(
    requests: list[list[int]], size: int, tokens: int, wait_s: float
):
    waiting = Batcher(size, tokens, wait_s)
    for i, lengths in enumerate(requests):
        waiting.add(str(i), lengths, now=float(i))
    batches = drain(waiting, now=20.0)
    computed = [item for batch in batches for item in batch]
    assert sorted(computed) == sorted(
        (str(i), j) for i, lengths in enumerate(requests) for j in range(len(lengths))
    )
    for batch in batches:
        lengths = [requests[int(name)][index] for name, index in batch]
        assert len(batch) <= size
        assert len(batch) == 1 or max(lengths) * len(batch) <= tokens


class Queue(RuleBasedStateMachine):
    """Requests come, are computed and leave in any order, while a clock goes on."""

    WAIT_S = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.waiting = Batcher(4, 1000, self.WAIT_S)
        self.now = 0.0
        self.num_requests = 0
        self.left: dict[str, dict[int, int]] = {}
        self.since: dict[str, float] = {}

    @rule(lengths=st.lists(st.integers(1, 600), max_size=12))
    def come(self, lengths: list[int]) -> None:
        name = str(self.num_requests)
        self.num_requests += 1
        self.waiting.add(name, lengths, self.now)
        if lengths:
            self.left[name] = dict(enumerate(lengths))
            self.since[name] = self.now

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.left:
            name = data.draw(st.sampled_from(sorted(self.left)))
            assert self.waiting.drop(name) == len(self.left.pop(name))
            del self.since[name]

    @rule(elapsed=st.floats(0, 30))
    def step(self, elapsed: float) -> None:
        self.now += elapsed
        batch = self.waiting.next_batch(self.now)
        assert bool(batch) == bool(self.left), "nothing waits while there is nothing to do"
        if batch:
            longest_waiting = min(self.since.values())
            if self.now - longest_waiting >= self.WAIT_S:
                served = {self.since[name] for name, _ in batch}
                assert longest_waiting in served, "who was passed over too long is served"
        for name, index in batch:
            del self.left[name][index]
            self.since[name] = self.now
            if not self.left[name]:
                del self.left[name], self.since[name]

    @invariant()
    def counts_agree(self) -> None:
        assert self.waiting.num_waiting == sum(map(len, self.left.values()))


TestQueue = Queue.TestCase
