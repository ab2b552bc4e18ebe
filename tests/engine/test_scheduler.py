"""Block manager and scheduler alone, without torch: a stand-in model that is a pure function."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from axion.engine.block_manager import BlockManager
from axion.engine.host_pool import HostPool
from axion.engine.scheduler import Scheduler
from axion.engine.sequence import Sequence, SequenceStatus
from axion.engine.speculative import verify
from axion.engine.state_slots import StateSlots
from axion.engine.step import SampledToken, ScheduledSequence
from axion.types import QUEUE_TIME_BUCKETS, FinishReason, SamplingParams

VOCAB = 50
EOS = 7


def next_token(token_ids: list[int]) -> int:
    """A model in miniature: the next token is a function of all tokens so far."""
    digest = hashlib.blake2b(bytes(token_ids), digest_size=4).digest()
    return int.from_bytes(digest) % VOCAB


def expected_output(prompt: list[int], params: SamplingParams, max_model_len: int) -> list[int]:
    tokens = list(prompt)
    while True:
        tokens.append(next_token(tokens))
        num_output = len(tokens) - len(prompt)
        if tokens[-1] == EOS and num_output >= params.min_tokens:
            return tokens[len(prompt) :]
        if num_output == params.max_tokens or len(tokens) == max_model_len:
            return tokens[len(prompt) :]


class PagedMemory:
    """Keeps, slot by slot, which prefix a real KV cache would hold, so that sharing is checked.

    All groups of a sequence that the step sees are looked at, and no more than their windows.
    Of a model with states, each slot's is that after some tokens.
    """

    def __init__(self, block_size: int, windows: tuple[int | None, ...] = (None,)) -> None:
        self.block_size = block_size
        self.windows = windows
        self.slots: dict[int, tuple[int, bytes]] = {}
        self.states: dict[int, bytes] = {0: b""}
        self.host_blocks: dict[int, dict[int, tuple[int, bytes]]] = {}
        self.host_states: dict[int, bytes] = {}

    def move(self, manager: BlockManager) -> None:
        """As the device does before each step."""
        pool, block_size = manager.host, self.block_size
        for place, block in pool.saves.items():
            self.host_blocks[place] = {
                offset: self.slots[block * block_size + offset] for offset in range(block_size)
            }
        for block, place in pool.loads.items():
            for offset, entry in self.host_blocks[place].items():
                self.slots[block * block_size + offset] = entry
        pool.moved()
        if manager.states is not None:
            pool = manager.states.host
            self.host_states |= {place: self.states[slot] for place, slot in pool.saves.items()}
            self.states |= {slot: self.host_states[place] for slot, place in pool.loads.items()}
            pool.moved()

    def execute(self, scheduled: list[ScheduledSequence]) -> list[list[SampledToken]]:
        for scheduled_sequence in scheduled:
            start = scheduled_sequence.sequence.num_computed_tokens
            for slot, entry in self.entries(scheduled_sequence, start):
                self.slots[slot] = entry
        sampled = []
        for scheduled_sequence in scheduled:
            sequence, _, drafts = scheduled_sequence
            for slot, entry in self.entries(scheduled_sequence, 0):
                assert self.slots.get(slot) == entry, "the cache holds another prefix"
            rows = [
                SampledToken(next_token(sequence.token_ids + drafts[:i]))
                for i in range(scheduled_sequence.num_rows)
            ]
            if rows:
                sampled.append(verify(scheduled_sequence, rows, lambda _, token: token))
        self.carry_states(scheduled)
        return sampled

    def spoil_states(self, scheduled: list[ScheduledSequence]) -> None:
        """As a step does that ends in the middle."""
        for entry in scheduled:
            if (state := entry.sequence.state) is not None:
                self.states |= dict.fromkeys((state.slot, *state.checkpoints.values()), b"spoilt")

    def carry_states(self, scheduled: list[ScheduledSequence]) -> None:
        written: dict[int, bytes] = {}
        for sequence, num_scheduled_tokens, _ in scheduled:
            if (state := sequence.state) is None:
                continue
            tokens, start = bytes(sequence.token_ids), sequence.num_computed_tokens
            end = start + num_scheduled_tokens
            assert self.states[state.source] == tokens[:start], "a state of other tokens"
            slots = {state.slot: end} | {
                slot: n for n, slot in state.checkpoints.items() if start < n <= end
            }
            assert written.keys().isdisjoint(slots), "each writes its own"
            written |= {slot: tokens[:n] for slot, n in slots.items()}
        kept = {sequence.state.source for sequence, _, _ in scheduled if sequence.state}
        own = {sequence.state.slot for sequence, _, _ in scheduled if sequence.state}
        assert (kept - own).isdisjoint(written), "what another starts from stays"
        self.states |= written

    def entries(
        self, scheduled: ScheduledSequence, first: int
    ) -> Iterator[tuple[int, tuple[int, bytes]]]:
        """What the step's tokens see from `first` on: its slot, and itself."""
        sequence = scheduled.sequence
        token_ids = sequence.token_ids + scheduled.draft_token_ids
        start = sequence.num_computed_tokens
        for group, window in enumerate(self.windows):
            seen = first if window is None else max(first, start - window + 1)
            for position in range(seen, start + len(scheduled.token_ids)):
                block, offset = divmod(position, self.block_size)
                block_id = sequence.block_tables[group][block]
                entry = group, bytes(token_ids[: position + 1])
                yield block_id * self.block_size + offset, entry


class Guesser:
    """Proposes what the model in miniature will say, but for some tokens.

    Of sequence "0" all are right, of "1" the first is wrong, of others one here and there.
    """

    def propose(self, scheduled: list[ScheduledSequence], limits: list[int]) -> list[list[int]]:
        return [
            self.guess(entry.sequence, limit)
            for entry, limit in zip(scheduled, limits, strict=True)
        ]

    def guess(self, sequence: Sequence, limit: int) -> list[int]:
        tokens = list(sequence.token_ids)
        for _ in range(limit):
            tokens.append(next_token(tokens))
        drafts = tokens[sequence.num_tokens :]
        kind = int(sequence.request_id)
        if kind and drafts:
            wrong = 0 if kind == 1 else sum(tokens) % (2 * len(drafts))
            if wrong < len(drafts):
                drafts[wrong] = (drafts[wrong] + 1) % VOCAB
        # Also one that proposes less than it may.
        return drafts[: 1 + sum(tokens) % limit] if kind == 3 and drafts else drafts


def make_scheduler(
    num_blocks: int = 16,
    block_size: int = 4,
    *,
    budget: int = 16,
    max_num_seqs: int = 4,
    windows: tuple[int | None, ...] = (None,),
    num_states: int = 0,
    num_host_blocks: int = 0,
    num_host_states: int = 0,
    **kwargs,
) -> Scheduler:
    """For sequences as long as fit, but not longer than 64 tokens under a window."""
    states = None
    if num_states:
        host = HostPool(num_host_states)
        states = StateSlots(num_states, block_size, max_num_seqs=max_num_seqs, host=host)
    manager = BlockManager(
        num_blocks,
        block_size,
        windows=windows,
        max_chunk=budget,
        states=states,
        host=HostPool(num_host_blocks),
        **kwargs,
    )
    longest = num_blocks * block_size if windows == (None,) else 64
    return Scheduler(
        manager,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max(
            n for n in range(longest + 1) if manager.max_blocks_held(n) <= num_blocks
        ),
    )


def make_sequence(request_id: str, prompt: list[int], *, priority: int = 0, **params) -> Sequence:
    return Sequence(
        request_id,
        prompt,
        SamplingParams(**params),
        seed=0,
        eos_token_ids=(EOS,),
        priority=priority,
    )


def run(scheduler: Scheduler, memory: PagedMemory) -> dict[str, list[int]]:
    outputs: dict[str, list[int]] = {}
    while scheduler.has_unfinished:
        scheduled = scheduler.schedule()
        memory.move(scheduler.block_manager)
        for output in scheduler.update(scheduled, memory.execute(scheduled)):
            outputs.setdefault(output.request_id, []).extend(output.token_ids)
        scheduler.check_integrity()
    return outputs


def prompts(longest: int) -> st.SearchStrategy[list[int]]:
    """Short ones of few distinct tokens and long ones of few kinds, so that many begin alike."""
    return st.lists(st.integers(0, 2), min_size=1, max_size=longest) | st.builds(
        lambda length, period: [i // period % 3 for i in range(length)],
        st.integers(1, longest),
        st.sampled_from([1, 9, 100]),
    )


def longest_hit(manager: BlockManager, sequence: Sequence) -> int:
    """Blocks of the longest prefix of which every group has what a next token would see, and at
    whose end a state is kept."""
    block_size, states = manager.block_size, manager.states

    def sees(num_blocks: int, window: int | None) -> range:
        first = 0 if window is None else max(0, num_blocks * block_size - window + 1)
        return range(first // block_size, num_blocks)

    return max(
        num_blocks
        for num_blocks in range((sequence.num_tokens - 1) // block_size + 1)
        if all(
            sequence.block_hashes[index] in cached
            or (group, sequence.block_hashes[index]) in manager.host
            for group, (window, cached) in enumerate(
                zip(manager.windows, manager._cached, strict=True)
            )
            for index in sees(num_blocks, window)
        )
        and (not num_blocks or not states or states.is_kept(sequence.block_hashes[num_blocks - 1]))
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of adding, stepping and aborting leaves every block accounted for."""

    @initialize(
        num_blocks=st.integers(4, 12),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 5),
        extra_budget=st.integers(0, 12),
        prefix_caching=st.booleans(),
        windows=st.sampled_from(
            [(None,), (None,), (3,), (None, 4), (None, None, 5, 1), (6, 2), (None, 7, 7, 7)]
        ),
        num_states=st.sampled_from([0, 0, 1, 2, 3, 5, 9]),
        num_host_blocks=st.sampled_from([0, 1, 3, 8, 50]),
        num_host_states=st.sampled_from([0, 1, 2, 8]),
        speculates=st.booleans(),
    )
    def start(
        self,
        num_blocks,
        block_size,
        max_num_seqs,
        extra_budget,
        prefix_caching,
        windows,
        num_states,
        num_host_blocks,
        num_host_states,
        speculates,
    ):
        # A state cannot be taken back.
        self.speculates = speculates and not num_states
        self.scheduler = make_scheduler(
            num_blocks * len(windows),
            block_size,
            budget=max_num_seqs + extra_budget,
            max_num_seqs=max_num_seqs,
            windows=windows,
            enable_prefix_caching=prefix_caching,
            num_states=num_states,
            num_host_blocks=num_host_blocks,
            num_host_states=num_host_states,
        )
        self.memory = PagedMemory(block_size, windows)
        self.sequences: dict[str, Sequence] = {}
        self.outputs: dict[str, list[int]] = {}

    @rule(
        data=st.data(),
        max_tokens=st.none() | st.integers(1, 8),
        min_tokens=st.sampled_from([0, 0, 1]),
        priority=st.sampled_from([0, 0, -1, 2]),
    )
    def add(self, data, max_tokens, min_tokens, priority):
        longest = self.scheduler.max_model_len - 1
        prompt = data.draw(prompts(longest))
        request_id = str(len(self.sequences))
        sequence = make_sequence(
            request_id, prompt, max_tokens=max_tokens, min_tokens=min_tokens, priority=priority
        )
        self.sequences[request_id] = sequence
        self.outputs[request_id] = []
        self.scheduler.add(sequence)

    @rule()
    def step(self):
        scheduled = self.scheduler.schedule()
        if self.speculates:
            scheduled = self.scheduler.speculate(scheduled, Guesser())
        self.memory.move(self.scheduler.block_manager)
        num_tokens = sum(len(entry.token_ids) for entry in scheduled)
        assert num_tokens <= self.scheduler.max_num_batched_tokens
        assert len(scheduled) <= self.scheduler.max_num_seqs
        for output in self.scheduler.update(scheduled, self.memory.execute(scheduled)):
            self.outputs[output.request_id] += output.token_ids
            if output.finish_reason is not None:
                self.check_output(output.request_id)

    @rule(prompt=prompts(40))
    def look_for_a_prefix(self, prompt):
        manager = self.scheduler.block_manager
        sequence = make_sequence("probe", prompt)
        found = manager._match_prefix(sequence)
        if found is not None and manager.enable_prefix_caching:
            assert found == longest_hit(manager, sequence)

    @rule(data=st.data())
    def abort(self, data):
        if self.sequences:
            chosen = data.draw(st.sampled_from(sorted(self.sequences)))
            self.scheduler.abort([chosen])
            assert self.sequences[chosen].status is SequenceStatus.FINISHED

    @rule(data=st.data())
    def fail_a_step(self, data):
        if data.draw(st.integers(0, 9)) == 0:
            scheduled = self.scheduler.schedule()
            failed = self.scheduler.fail(scheduled, "fault")
            assert all(output.finish_reason is FinishReason.ERROR for output in failed)

    @rule(data=st.data())
    def find_that_numbers_are_unusable(self, data):
        if data.draw(st.integers(0, 9)) == 0 and (scheduled := self.scheduler.schedule()):
            self.memory.move(self.scheduler.block_manager)
            sampled = self.memory.execute(scheduled)
            errors = {}
            entry = data.draw(st.sampled_from(scheduled))
            if entry.samples:
                row = [each for each in scheduled if each.samples].index(entry)
                sampled[row] = [SampledToken(0, error="unusable")]
            else:
                errors = {entry.sequence.request_id: "unusable"}
            for output in self.scheduler.update(scheduled, sampled, errors):
                self.outputs[output.request_id] += output.token_ids
                if output.error is None and output.finish_reason is not None:
                    self.check_output(output.request_id)
            assert entry.sequence.finish_reason is FinishReason.ERROR

    @rule(data=st.data())
    def find_no_memory_for_a_step(self, data):
        scheduled = self.scheduler.schedule()
        num_tokens = sum(entry.num_scheduled_tokens for entry in scheduled)
        if num_tokens > 1 and data.draw(st.integers(0, 9)) == 0:
            self.memory.move(self.scheduler.block_manager)
            self.memory.spoil_states(scheduled)
            assert not self.scheduler.retreat(scheduled)
            smaller = self.scheduler.schedule()
            assert 0 < sum(entry.num_scheduled_tokens for entry in smaller) <= num_tokens // 2

    @invariant()
    def every_block_is_accounted_for(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def check_output(self, request_id: str) -> None:
        sequence = self.sequences[request_id]
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        expected = expected_output(prompt, sequence.params, self.scheduler.max_model_len)
        assert self.outputs[request_id] == expected

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if not self.scheduler.has_unfinished:
                break
            self.step()
            self.scheduler.check_integrity()
        assert not self.scheduler.has_unfinished, "every sequence finishes"
        assert self.scheduler.block_manager.num_used_blocks == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=70, stateful_step_count=40)


@pytest.mark.parametrize(
    ("windows", "num_blocks"), [((None,), 8), ((6,), 10), ((None, 6), 18)], ids=str
)
def test_preempted_sequences_give_the_same_tokens(windows: tuple[int | None, ...], num_blocks: int):
    prompts = {str(i): [i, i + 1, i + 2] for i in range(4)}
    roomy, tight = (make_scheduler(n, budget=4, windows=windows) for n in (64, num_blocks))
    results = []
    for scheduler in (roomy, tight):
        for request_id, prompt in prompts.items():
            scheduler.add(make_sequence(request_id, prompt, max_tokens=20, ignore_eos=True))
        results.append(run(scheduler, PagedMemory(4, windows)))
    assert results[0] == results[1]
    assert roomy.num_preemptions == 0
    assert tight.num_preemptions > 0


def test_the_newest_sequence_is_preempted_first():
    scheduler = make_scheduler(num_blocks=4, block_size=2, enable_prefix_caching=False)
    old, new = make_sequence("old", [1, 2, 3, 4]), make_sequence("new", [5, 6, 8])
    memory = PagedMemory(2)
    scheduler.add(old)
    scheduler.add(new)
    scheduled = scheduler.schedule()
    assert [entry.sequence for entry in scheduled] == [old, new]
    scheduler.update(scheduled, memory.execute(scheduled))
    scheduled = scheduler.schedule()  # `old` needs a third block, and all four are taken
    assert [entry.sequence for entry in scheduled] == [old]
    assert new.status is SequenceStatus.PREEMPTED
    assert scheduler.waiting[0] is new


def admitted(scheduler: Scheduler, memory: PagedMemory) -> list[str]:
    """Request ids in the order in which they are first computed, until all have finished."""
    order: dict[str, None] = {}
    while scheduler.has_unfinished:
        scheduled = scheduler.schedule()
        order.update((entry.sequence.request_id, None) for entry in scheduled)
        scheduler.update(scheduled, memory.execute(scheduled))
    return list(order)


def test_a_lower_priority_is_served_first_and_equals_in_order_of_arrival():
    scheduler = make_scheduler(num_blocks=64, max_num_seqs=1)
    for i, priority in enumerate([0, 5, -1, 0, -1, 5]):
        scheduler.add(make_sequence(f"{priority}:{i}", [i], priority=priority, max_tokens=2))
    assert admitted(scheduler, PagedMemory(4)) == ["-1:2", "-1:4", "0:0", "0:3", "5:1", "5:5"]


def test_the_last_in_priority_is_preempted_even_where_it_came_first():
    scheduler = make_scheduler(num_blocks=6, block_size=2, enable_prefix_caching=False)
    memory = PagedMemory(2)
    low = make_sequence("low", [1, 2, 3, 4], priority=1, ignore_eos=True)
    high = make_sequence("high", [5, 6, 8], priority=0, ignore_eos=True)
    for sequence in (low, high):
        scheduler.add(sequence)
        scheduled = scheduler.schedule()
        scheduler.update(scheduled, memory.execute(scheduled))
    assert scheduler.running == [high, low]
    while not scheduler.num_preemptions:
        scheduled = scheduler.schedule()
        scheduler.update(scheduled, memory.execute(scheduled))
    assert [entry.sequence for entry in scheduled] == [high]
    assert scheduler.waiting == [low]
    assert run(scheduler, memory)
    assert low.output_token_ids[:1] == [next_token([1, 2, 3, 4])]


def test_a_long_prompt_of_less_priority_holds_nobody_up():
    scheduler = make_scheduler(num_blocks=64, budget=8)
    memory = PagedMemory(4)
    low = make_sequence("low", list(range(40)), priority=1, max_tokens=1)
    streams = [make_sequence(f"{i}", [i], priority=2, ignore_eos=True) for i in range(2)]
    for sequence in (*streams, low):
        scheduler.add(sequence)
        scheduled = scheduler.schedule()
        scheduler.update(scheduled, memory.execute(scheduled))
    high = make_sequence("high", [45, 46, 47, 48], max_tokens=1)
    scheduler.add(high)
    scheduled = scheduler.schedule()
    # It comes before the rest of the prompt, and streams behind both go on.
    assert [entry[:2] for entry in scheduled] == [
        (high, 4),
        (low, 2),
        (streams[0], 1),
        (streams[1], 1),
    ]


def steps_until_memory_is_found(scheduler: Scheduler, most: int) -> int:
    """Has steps of more than `most` tokens find no memory; how many did."""
    num_failed = 0
    while sum(entry.num_scheduled_tokens for entry in scheduler.schedule()) > most:
        assert not scheduler.retreat(scheduler.schedule())
        scheduler.check_integrity()
        num_failed += 1
    return num_failed


def test_a_step_without_memory_is_computed_in_smaller_ones_and_nothing_is_lost_or_doubled():
    prompts = {str(i): [i + 1] * (20 - i) for i in range(4)}
    scheduler, memory = make_scheduler(64, budget=64), PagedMemory(4)
    for request_id, prompt in prompts.items():
        scheduler.add(make_sequence(request_id, prompt, max_tokens=20))
    assert steps_until_memory_is_found(scheduler, 3) == 5
    assert len(scheduler.running) <= 3
    assert scheduler.num_out_of_memory == 5
    outputs = run(scheduler, memory)
    assert outputs == {
        request_id: expected_output(prompt, SamplingParams(max_tokens=20), 256)
        for request_id, prompt in prompts.items()
    }


def test_the_newest_of_a_step_without_memory_wait_and_steps_grow_again():
    scheduler, memory = make_scheduler(64), PagedMemory(4)
    sequences = [make_sequence(str(i), [i], ignore_eos=True, max_tokens=200) for i in range(4)]
    for sequence in sequences:
        scheduler.add(sequence)
    scheduled = scheduler.schedule()
    scheduler.update(scheduled, memory.execute(scheduled))
    scheduler.retreat(scheduler.schedule())
    assert scheduler.running == sequences[:2]
    num_steps = 0
    while len(scheduler.running) < 4:
        scheduled = scheduler.schedule()
        scheduler.update(scheduled, memory.execute(scheduled))
        num_steps += 1
    assert 10 < num_steps < 150


def test_a_single_token_without_memory_ends_its_sequence_alone():
    scheduler = make_scheduler(64)
    scheduler.add(make_sequence("0", [1]))
    scheduler.add(make_sequence("1", [2, 3]))
    assert steps_until_memory_is_found(scheduler, 1) == 1
    (output,) = scheduler.retreat(scheduler.schedule())
    assert (output.request_id, output.finish_reason) == ("0", FinishReason.ERROR)
    assert "not enough memory" in (output.error or "")
    assert list(run(scheduler, PagedMemory(4))) == ["1"]


@pytest.mark.parametrize("most", [0, 4], ids=["never", "a few tokens"])
def test_a_sequence_that_loses_its_state_comes_past_the_place_or_is_told(most: int):
    """No slot to spare, so that one that loses its state begins anew: beyond 1,000 tokens there is
    memory for few tokens in a step, or for none."""
    scheduler = make_scheduler(300, 16, budget=64, max_num_seqs=2, num_states=2)
    for name, length in (("long", 2000), ("also", 1500), ("short", 900)):
        prompt = [ord(name[0])] * length
        scheduler.add(make_sequence(name, prompt, max_tokens=3, ignore_eos=True))
    reasons: dict[str, FinishReason] = {}
    num_steps = 0
    while scheduler.has_unfinished:
        num_steps += 1
        assert num_steps < 30_000, "it begins anew for ever"
        scheduled = scheduler.schedule()
        fits = all(entry.end <= 1000 for entry in scheduled)
        if fits or sum(entry.num_scheduled_tokens for entry in scheduled) <= most:
            outputs = scheduler.update(
                scheduled, [[SampledToken(1)] for entry in scheduled if entry.samples]
            )
        else:
            outputs = scheduler.retreat(scheduled)
            assert all("not enough memory" in (output.error or "") for output in outputs)
        reasons |= {o.request_id: o.finish_reason for o in outputs if o.finish_reason}
    beyond = FinishReason.LENGTH if most else FinishReason.ERROR
    assert reasons == {"long": beyond, "also": beyond, "short": FinishReason.LENGTH}
    scheduler.check_integrity()


def test_the_time_that_sequences_wait_is_counted():
    times = iter([0.0, 0.0, 0.0, 0.2])  # two arrive, the first begins, and then the second
    scheduler = Scheduler(
        BlockManager(16, 4, max_chunk=16),
        max_num_seqs=1,
        max_num_batched_tokens=16,
        max_model_len=64,
        clock=lambda: next(times),
    )
    for i in range(2):
        scheduler.add(make_sequence(str(i), [i], max_tokens=1))
    run(scheduler, PagedMemory(4))
    assert scheduler.queue_seconds == 0.2
    counts = dict(zip((*QUEUE_TIME_BUCKETS, None), scheduler.queue_times, strict=True))
    assert counts[0.001] == counts[0.25] == 1
    assert sum(counts.values()) == 2


class Machine:
    """Computes steps in a time that is a function of their size, with noise."""

    def __init__(self, scheduler: Scheduler, per_token_s: float = 0.0002) -> None:
        self.scheduler = scheduler
        self.per_token_s = per_token_s
        self.random = random.Random(0)

    def step(self) -> tuple[int, float]:
        """Tokens of the step, and the seconds that it would take without noise."""
        scheduled = self.scheduler.schedule()
        num_tokens = sum(entry.num_scheduled_tokens for entry in scheduled)
        seconds = 0.01 + 0.0005 * len(scheduled) + self.per_token_s * num_tokens
        noise = self.random.uniform(0.97, 1.03) * (5 if self.random.random() < 0.02 else 1)
        self.scheduler.observe(scheduled, seconds * noise)
        sampled = [[SampledToken(1)] for entry in scheduled if entry.samples]
        self.scheduler.update(scheduled, sampled)
        return num_tokens, seconds


def loaded_scheduler(target_itl_s: float | None) -> Scheduler:
    """Four streams, and prompts that come one after the other."""
    manager = BlockManager(1500, 16, max_chunk=512, enable_prefix_caching=False)
    scheduler = Scheduler(
        manager,
        max_num_seqs=5,
        max_num_batched_tokens=512,
        max_model_len=3000,
        target_itl_s=target_itl_s,
    )
    for i in range(4):
        scheduler.add(make_sequence(str(i), [i], ignore_eos=True, max_tokens=2000))
    for i in range(4, 24):
        scheduler.add(make_sequence(str(i), [i] * 2000, ignore_eos=True, max_tokens=20))
    return scheduler


def test_chunks_are_as_large_as_the_target_of_streams_allows():
    machine = Machine(loaded_scheduler(0.05))
    steps = [machine.step() for _ in range(300)][50:]
    in_time = [seconds for _, seconds in steps if seconds <= 0.05]
    assert len(in_time) >= 0.97 * len(steps)
    # Within the target there would be room for 187 tokens in a step.
    chunks = [num_tokens for num_tokens, _ in steps if num_tokens > 50]
    assert sum(chunks) / len(chunks) > 120


def test_a_machine_that_becomes_slower_gets_smaller_chunks():
    machine = Machine(loaded_scheduler(0.05))
    for _ in range(100):
        machine.step()
    machine.per_token_s *= 3
    steps = [machine.step() for _ in range(100)][30:]
    assert sum(seconds <= 0.05 for _, seconds in steps) >= 0.95 * len(steps)


def test_prompts_get_on_where_the_target_cannot_be_kept():
    machine = Machine(loaded_scheduler(0.001))
    machine.step()  # nothing decodes yet
    assert max(machine.step()[0] for _ in range(50)) == 5 + 32


def test_drafts_count_against_the_target_of_streams():
    scheduler = loaded_scheduler(0.001)
    Machine(scheduler).step()  # nothing decodes yet
    scheduled = scheduler.speculate(scheduler.schedule(), Guesser())
    assert sum(len(entry.token_ids) for entry in scheduled) == 5 + 32


def test_without_streams_or_without_a_target_prompts_take_the_whole_budget():
    machine = Machine(loaded_scheduler(None))
    assert max(machine.step()[0] for _ in range(10)) == 512
    scheduler = make_scheduler(64)
    scheduler.target_itl_s = 1e-9
    scheduler.add(make_sequence("long", list(range(40)), max_tokens=1))
    assert [entry.num_scheduled_tokens for entry in scheduler.schedule()] == [16]


@pytest.mark.parametrize("windows", [(None,), (None, 3), (9,)], ids=str)
def test_sequences_of_one_prompt_compute_it_once(windows: tuple[int | None, ...]):
    scheduler, memory = make_scheduler(64, budget=64, windows=windows), PagedMemory(4, windows)
    prompt = list(range(18))
    for i in range(4):
        scheduler.add(make_sequence(str(i), prompt, max_tokens=3, ignore_eos=True))
    scheduler.add(make_sequence("other", [40, 41], max_tokens=1))
    num_computed: dict[str, int] = {}
    while scheduler.has_unfinished:
        scheduled = scheduler.schedule()
        for sequence, num_tokens, _ in scheduled:
            prompt_left = max(0, sequence.num_prompt_tokens - sequence.num_computed_tokens)
            num_computed.setdefault(sequence.request_id, 0)
            num_computed[sequence.request_id] += min(num_tokens, prompt_left)
        scheduler.update(scheduled, memory.execute(scheduled))
        scheduler.check_integrity()
    assert num_computed == {"0": 18, "1": 2, "2": 2, "3": 2, "other": 2}


@pytest.mark.parametrize("end", ["abort", "fail"])
def test_who_waits_for_a_prompt_that_is_given_up_computes_it(end: str):
    scheduler, memory = make_scheduler(num_blocks=64, budget=8), PagedMemory(4)
    for i in range(2):
        scheduler.add(make_sequence(str(i), list(range(18)), max_tokens=1))
    scheduled = scheduler.schedule()
    assert [entry.sequence.request_id for entry in scheduled] == ["0"]
    if end == "abort":
        scheduler.abort(["0"])
    else:
        scheduler.fail(scheduled, "fault")
    assert run(scheduler, memory) == {"1": [next_token(list(range(18)))]}


def test_sequences_whose_prompt_is_scored_take_nothing_from_the_cache():
    scheduler, memory = make_scheduler(num_blocks=32), PagedMemory(4)
    for i in range(2):
        scheduler.add(make_sequence(str(i), list(range(9)), max_tokens=1, prompt_logprobs=0))
    scheduled = scheduler.schedule()
    assert [entry.num_scheduled_tokens for entry in scheduled] == [9, 7]
    scheduler.update(scheduled, memory.execute(scheduled))


def test_with_max_tokens_0_the_prompt_is_computed_and_nothing_else():
    scheduler, memory = make_scheduler(), PagedMemory(4)
    sequence = make_sequence("s", [1] * 64, max_tokens=0)
    scheduler.add(sequence)
    while scheduler.has_unfinished:
        scheduled = scheduler.schedule()
        outputs = scheduler.update(scheduled, memory.execute(scheduled))
    assert [(o.token_ids, o.finish_reason) for o in outputs] == [([], FinishReason.LENGTH)]
    assert sequence.num_computed_tokens == 0, "its blocks are back"
    assert len(memory.slots) == 64


def test_a_long_prompt_is_computed_in_chunks_while_others_decode():
    scheduler = make_scheduler(num_blocks=32, budget=8)
    memory = PagedMemory(4)
    scheduler.add(make_sequence("short", [1], max_tokens=12, ignore_eos=True))
    scheduled = scheduler.schedule()
    scheduler.update(scheduled, memory.execute(scheduled))
    scheduler.add(make_sequence("long", list(range(30)), max_tokens=1))
    chunks = []
    for _ in range(5):
        scheduled = scheduler.schedule()
        chunks.append({e.sequence.request_id: e.num_scheduled_tokens for e in scheduled})
        scheduler.update(scheduled, memory.execute(scheduled))
    assert chunks == [{"short": 1, "long": 7}] * 4 + [{"short": 1, "long": 2}]


def test_an_equal_prefix_is_taken_from_the_cache():
    scheduler, memory = make_scheduler(num_blocks=32), PagedMemory(4)
    prompt = list(range(10))
    scheduler.add(make_sequence("first", prompt, max_tokens=1))
    run(scheduler, memory)
    second = make_sequence("second", prompt, max_tokens=1)
    scheduler.add(second)
    assert scheduler.schedule()[0].num_scheduled_tokens == 2
    assert second.num_cached_tokens == 8


def test_a_fully_cached_prompt_still_computes_its_last_token():
    scheduler, memory = make_scheduler(num_blocks=32), PagedMemory(4)
    prompt = list(range(8))
    for request_id in ("first", "second"):
        scheduler.add(make_sequence(request_id, prompt, max_tokens=1))
        outputs = run(scheduler, memory)
        assert outputs[request_id] == [next_token(prompt)]
    assert scheduler.num_cached_tokens == 4


def test_what_a_preempted_sequence_computed_itself_was_not_cached():
    scheduler, memory = make_scheduler(num_blocks=12, block_size=2, budget=6), PagedMemory(2)
    scheduler.add(make_sequence("old", [1, 2, 3, 4], max_tokens=9, ignore_eos=True))
    new = make_sequence("new", list(range(10, 28)), max_tokens=1)
    scheduler.add(new)
    run(scheduler, memory)
    assert scheduler.num_preemptions == 1
    assert new.num_cached_tokens == scheduler.num_cached_tokens == 0


def test_different_salts_share_nothing():
    scheduler, memory = make_scheduler(num_blocks=32), PagedMemory(4)
    for salt in ("a", "b"):
        sequence = Sequence(
            salt, list(range(9)), SamplingParams(max_tokens=1), seed=0, cache_salt=salt
        )
        scheduler.add(sequence)
        run(scheduler, memory)
        assert sequence.num_cached_tokens == 0


@pytest.mark.parametrize("windows", [(None,), (4,)], ids=str)
def test_equal_hashes_with_other_tokens_are_no_hit(windows: tuple[int | None, ...]):
    scheduler, memory = make_scheduler(32, windows=windows), PagedMemory(4, windows)
    scheduler.add(make_sequence("first", list(range(9)), max_tokens=1))
    run(scheduler, memory)
    forged = make_sequence("forged", [9] * 9, max_tokens=1)
    original = make_sequence("original", list(range(9)), max_tokens=1)
    original.extend_block_hashes(4)
    forged.block_hashes = list(original.block_hashes)
    scheduler.add(forged)
    scheduler.schedule()
    assert forged.num_cached_tokens == 0


def test_least_recently_used_blocks_are_evicted_first():
    manager = BlockManager(num_blocks=4, block_size=2)
    for request_id, prompt in (("a", [1, 1]), ("b", [2, 2])):
        sequence = make_sequence(request_id, prompt)
        assert manager.admit(sequence)
        sequence.num_computed_tokens = 2
        manager.advance(sequence)
        manager.free(sequence)
    filler = make_sequence("c", [3] * 5)  # takes the two unused blocks and the one of "a"
    assert manager.admit(filler)
    manager.free(filler)
    for request_id, prompt, num_cached in (("a", [1, 1, 0], 0), ("b", [2, 2, 0], 2)):
        sequence = make_sequence(request_id, prompt)
        assert manager.admit(sequence)
        assert sequence.num_computed_tokens == num_cached
        manager.free(sequence)


@pytest.mark.parametrize("windows", [(8,), (None, 8), (None, 9, 9, 2)], ids=str)
@pytest.mark.parametrize("prompt_length", [3, 50])
def test_a_sequence_holds_no_more_than_its_windows(
    windows: tuple[int | None, ...], prompt_length: int
):
    # Chunks of 7 tokens begin anywhere in a block.
    scheduler, memory = make_scheduler(80, budget=7, windows=windows), PagedMemory(4, windows)
    manager = scheduler.block_manager
    sequence = make_sequence("s", [1] * prompt_length, ignore_eos=True)
    scheduler.add(sequence)
    while scheduler.has_unfinished:
        scheduled = scheduler.schedule()
        num_blocks = -(-sequence.num_tokens // 4)
        # The largest chunk needs three blocks, and a generated token one.
        num_ahead = 1 if sequence.num_output_tokens else 3
        held = [
            num_blocks if window is None else min(num_blocks, -(-(window - 1) // 4) + num_ahead)
            for window in windows
        ]
        assert manager.num_used_blocks <= sum(held)
        scheduler.update(scheduled, memory.execute(scheduled))
    assert sequence.num_tokens == 64


def test_with_windows_alone_a_sequence_may_be_longer_than_the_cache():
    scheduler, memory = make_scheduler(5, budget=8, windows=(8,)), PagedMemory(4, (8,))
    scheduler.add(make_sequence("long", [3] * 40, max_tokens=20, ignore_eos=True))
    assert len(run(scheduler, memory)["long"]) == 20
    assert scheduler.num_preemptions == 0


@pytest.mark.parametrize(
    ("length", "is_overwritten", "num_cached"),
    [(33, False, 32), (33, True, 32), (17, False, 16), (17, True, 0)],
)
def test_a_prefix_needs_no_block_behind_its_last_window(
    length: int, is_overwritten: bool, num_cached: int
):
    windows = (None, 6)
    scheduler, memory = make_scheduler(20, budget=8, windows=windows), PagedMemory(4, windows)
    prompt = list(range(33))
    scheduler.add(make_sequence("first", prompt, max_tokens=1))
    run(scheduler, memory)
    if is_overwritten:
        # 10 blocks: the 4 that hold nothing, and the 6 that the first had behind its window.
        scheduler.add(make_sequence("other", [40] * 17, max_tokens=1))
        scheduler.schedule()
        assert scheduler.block_manager.num_used_blocks == 10
        scheduler.abort(["other"])
    again = make_sequence("again", prompt[:length], max_tokens=1)
    scheduler.add(again)
    assert run(scheduler, memory)["again"] == [next_token(prompt[:length])]
    assert again.num_cached_tokens == num_cached


def test_a_row_of_unusable_logits_ends_only_its_own_sequence():
    scheduler = make_scheduler()
    for request_id in ("bad", "good"):
        scheduler.add(make_sequence(request_id, [1, 2], max_tokens=1))
    scheduled = scheduler.schedule()
    bad, good = scheduler.update(
        scheduled, [[SampledToken(0, error="not a number")], [SampledToken(3)]]
    )
    assert (bad.finish_reason, bad.error) == (FinishReason.ERROR, "not a number")
    assert (good.finish_reason, good.token_ids) == (FinishReason.LENGTH, [3])
    scheduler.check_integrity()


@pytest.mark.parametrize("num_states", [0, 12])
def test_nobody_finds_what_a_sequence_with_unusable_numbers_had(num_states: int):
    scheduler = make_scheduler(
        20, budget=16, num_states=num_states, num_host_blocks=50, num_host_states=9
    )
    memory = PagedMemory(4)
    prompt = [i % 5 for i in range(41)]
    scheduler.add(make_sequence("first", prompt, max_tokens=1))
    scheduler.add(make_sequence("filler", [9] * 70, max_tokens=1))  # part of it goes to the host
    run(scheduler, memory)
    scheduler.add(make_sequence("bad", [*prompt, *[3] * 20], max_tokens=1))
    scheduled = scheduler.schedule()
    assert scheduler.num_cached_tokens == 40, "a chunk of a prompt that begins in host memory"
    memory.move(scheduler.block_manager)
    [output] = scheduler.update(scheduled, [], {"bad": "not a number"})
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, "not a number")
    scheduler.check_integrity()
    again = make_sequence("again", prompt, max_tokens=1)
    scheduler.add(again)
    assert run(scheduler, memory) == {"again": [next_token(prompt)]}
    assert again.num_cached_tokens == 0


@pytest.mark.parametrize(
    ("params", "tokens", "reason"),
    [
        ({"max_tokens": 2}, [1, 2], FinishReason.LENGTH),
        ({}, [1, EOS], FinishReason.STOP),
        ({"stop_token_ids": (4,)}, [3, 4], FinishReason.STOP),
        ({"ignore_eos": True, "max_tokens": 3}, [EOS, EOS, 1], FinishReason.LENGTH),
        ({"max_tokens": 1}, [EOS], FinishReason.STOP),
    ],
)
def test_what_ends_a_sequence(params, tokens, reason):
    sequence = make_sequence("s", [1], **params)
    for token in tokens:
        assert sequence.finish_reason is None
        sequence.append(token, max_model_len=100)
    assert sequence.finish_reason is reason


def test_a_sequence_ends_at_the_models_context():
    sequence = make_sequence("s", [1, 2])
    sequence.append(3, max_model_len=3)
    assert sequence.finish_reason is FinishReason.LENGTH


def computed_tokens(scheduler: Scheduler, memory: PagedMemory) -> dict[str, int]:
    """How many tokens of each request are computed until all have finished."""
    counts: dict[str, int] = {}
    while scheduler.has_unfinished:
        scheduled = scheduler.schedule()
        for sequence, num_tokens, _ in scheduled:
            counts[sequence.request_id] = counts.get(sequence.request_id, 0) + num_tokens
        scheduler.update(scheduled, memory.execute(scheduled))
        scheduler.check_integrity()
    return counts


@pytest.mark.parametrize("budget", [64, 5])
def test_with_states_sequences_of_one_prompt_compute_it_once(budget: int):
    scheduler, memory = make_scheduler(64, budget=budget, num_states=12), PagedMemory(4)
    for i in range(4):
        scheduler.add(make_sequence(str(i), list(range(18)), max_tokens=1))
    # The last two tokens are no full block.
    assert computed_tokens(scheduler, memory) == {"0": 18, "1": 2, "2": 2, "3": 2}


def test_with_states_a_prefix_is_shared_from_where_prompts_part():
    scheduler, memory = make_scheduler(64, budget=64, num_states=12), PagedMemory(4)
    system = list(range(13))
    for name in "ab":  # together: the first keeps the state for the second
        scheduler.add(make_sequence(name, [*system, *[ord(name) - 97] * 6], max_tokens=1))
    assert computed_tokens(scheduler, memory) == {"a": 19, "b": 7}
    scheduler.add(make_sequence("c", [*system, 9, 9, 9], max_tokens=1))
    assert computed_tokens(scheduler, memory) == {"c": 4}

    scheduler, memory = make_scheduler(64, budget=64, num_states=12), PagedMemory(4)
    for name in "abc":  # one after another: the second keeps it for the third
        scheduler.add(make_sequence(name, [*system, *[ord(name) - 97] * 6], max_tokens=1))
        count = computed_tokens(scheduler, memory)
        assert count == {name: 7 if name == "c" else 19}


def test_without_slots_to_spare_nobody_waits_and_nothing_is_kept():
    scheduler = make_scheduler(64, budget=64, max_num_seqs=2, num_states=2)
    for name in "ab":
        scheduler.add(make_sequence(name, list(range(18)), max_tokens=1))
    assert len(scheduler.schedule()) == 2


def test_more_sequences_than_slots_take_turns():
    scheduler, memory = make_scheduler(64, budget=64, num_states=2), PagedMemory(4)
    for i in range(5):
        scheduler.add(make_sequence(str(i), [i, i, i], max_tokens=4, ignore_eos=True))
    assert len(scheduler.schedule()) == 2
    assert all(len(tokens) == 4 for tokens in run(scheduler, memory).values())


def test_a_step_without_memory_loses_the_states_that_it_had_begun_to_carry_on():
    scheduler, memory = make_scheduler(64, budget=64, num_states=12), PagedMemory(4)
    for i in range(2):
        scheduler.add(make_sequence(str(i), [i + 1] * 9, max_tokens=5, ignore_eos=True))
    scheduled = scheduler.schedule()
    scheduler.update(scheduled, memory.execute(scheduled))
    scheduled = scheduler.schedule()
    memory.spoil_states(scheduled)
    assert not scheduler.retreat(scheduled)
    assert scheduler.num_preemptions == 2
    scheduler.check_integrity()
    assert computed_tokens(scheduler, memory) == {"0": 5, "1": 5}, "from where they were kept"
