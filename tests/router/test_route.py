"""Requests go to an engine that honours them, and outlive the engines that fail on them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from axion.backends.base import ModelConfig
from axion.backends.capabilities import Capabilities, Support
from axion.errors import (
    AxionError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
    QueueFullError,
)
from axion.observability.metrics import Metrics
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import collect_chat
from axion.openai.completions import CompletionRequest, collect_completion
from axion.router.decide import Decision
from axion.router.plan import Begin, Plan
from axion.router.registry import ModelRegistry
from axion.router.route import Route
from axion.router.served import RoutingPolicy, ServedModel
from axion.types import BackendState
from tests.server.conftest import ScriptedBackend

DOWN = EngineUnavailableError("The engine fell over.")
BUSY = QueueFullError("The engine is busy.", headers={"Retry-After": "7"})
# Honours no more than a temperature.
PLAIN = Capabilities(engine="plain", features={"temperature": Support.HONOURED})


def serve(*backends: ScriptedBackend, **policy: Any) -> ServedModel:
    registry = ModelRegistry()
    model = ModelConfig(model_name="m")
    return registry.add(model, *backends, policy=RoutingPolicy(**policy))


async def started(*backends: ScriptedBackend, **policy: Any) -> ServedModel:
    served = serve(*backends, **policy)
    await served.start()
    await settle(served)
    return served


async def settle(served: ServedModel) -> None:
    """Everything that is being loaded has been."""
    while tasks := [c.starting for c in served.candidates if c.starting and not c.starting.done()]:
        await asyncio.wait(tasks)


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return ChatCompletionRequest.model_validate(body)


async def ask(served: ServedModel, **fields: Any) -> tuple[str, str]:
    """Who answers, and what."""
    route = Route(served)
    answer = await collect_chat(route.chat(chat(**fields), "id"))
    return route.engine, answer.choices[0].message.content or ""


class TestChoice:
    async def test_the_engine_that_is_wanted_most_answers(self):
        served = await started(ScriptedBackend("a"), ScriptedBackend("b"))
        assert await ask(served) == ("a", "tok tok tok ")

    async def test_a_request_goes_to_an_engine_that_honours_all_of_it(self):
        served = await started(ScriptedBackend("plain", PLAIN), ScriptedBackend("native"))
        assert (await ask(served, temperature=0.5))[0] == "plain"
        assert (await ask(served, logit_bias={"1": 5}))[0] == "native"
        assert (await ask(served, temperature=0.5, n=2))[0] == "native"

    async def test_what_no_engine_honours_is_refused_by_name(self):
        served = await started(ScriptedBackend("plain", PLAIN))
        with pytest.raises(InvalidRequestError, match=r"logit_bias .* plain") as error:
            await ask(served, logit_bias={"1": 5})
        assert error.value.param == "logit_bias"
        with pytest.raises(InvalidRequestError, match=r"response_format\.json_object") as error:
            await ask(served, response_format={"type": "json_object"})
        assert error.value.param == "response_format"

    async def test_weights_share_requests_out(self):
        weights = {"a": 1.0, "b": 1.0}
        served = await started(ScriptedBackend("a"), ScriptedBackend("b"), weights=weights)
        answered = {(await ask(served))[0] for _ in range(64)}
        assert answered == {"a", "b"}
        weights["b"] = 0.0
        assert {(await ask(served))[0] for _ in range(64)} == {"a"}

    async def test_weights_do_not_send_a_request_where_it_is_not_honoured(self):
        weights = {"plain": 1.0}
        served = await started(
            ScriptedBackend("plain", PLAIN), ScriptedBackend("native"), weights=weights
        )
        assert (await ask(served, n=2))[0] == "native"


class TestStart:
    async def test_the_last_engine_answers_until_the_first_has_loaded(self):
        slow, native = ScriptedBackend("slow"), ScriptedBackend("native")
        slow.loaded.clear()
        served = serve(slow, native)
        await served.start()
        assert (await ask(served))[0] == "native"
        health = await served.health()
        assert health.state is BackendState.READY
        assert [engine.state for engine in health.engines] == ["starting", "ready"]
        slow.loaded.set()
        await settle(served)
        assert (await ask(served))[0] == "slow"

    async def test_an_answer_that_has_begun_stays_where_it_is(self):
        slow, native = ScriptedBackend("slow"), ScriptedBackend("native")
        slow.loaded.clear()
        go_on = asyncio.Event()
        native.pause = go_on.wait
        served = serve(slow, native)
        await served.start()
        route = Route(served)
        async with aclosing(route.chat(chat(), "id")) as chunks:
            await anext(chunks)
            slow.loaded.set()
            await settle(served)
            go_on.set()
            assert len([chunk async for chunk in chunks]) == 5
        assert route.engine == "native"
        assert not slow.seen

    async def test_without_a_standby_only_the_first_is_started(self):
        first, last = ScriptedBackend("a"), ScriptedBackend("b")
        served = await started(first, last, standby="never")
        assert [c.has_started for c in served.candidates] == [True, False]

    async def test_a_standby_for_the_start_alone_ends_with_it(self):
        slow, native = ScriptedBackend("slow"), ScriptedBackend("native")
        slow.loaded.clear()
        served = serve(slow, native, standby="start")
        await served.start()
        slow.loaded.set()
        await settle(served)
        await eventually(lambda: native.stopped_with is not None)
        assert (await ask(served))[0] == "slow"
        assert [engine.state for engine in (await served.health()).engines] == ["ready", "stopped"]

    async def test_an_engine_that_cannot_be_loaded_has_the_next_in_its_place(self):
        broken, next_one, last = (ScriptedBackend(name) for name in ("a", "b", "c"))
        broken.start_error = ModelLoadError("no such architecture")
        served = await started(broken, next_one, last, standby="never")
        assert (await ask(served))[0] == "b"
        assert not served.candidates[2].has_started

    async def test_a_model_that_no_engine_loads_says_what_the_last_one_did(self):
        first, last = ScriptedBackend("a"), ScriptedBackend("b")
        first.start_error, last.start_error = ModelLoadError("one"), ModelLoadError("two")
        served = serve(first, last)
        with pytest.raises(ModelLoadError, match="two"):
            await served.start()
        assert (await served.health()).state is BackendState.DOWN
        with pytest.raises(EngineUnavailableError, match="down"):
            await served.choose()

    async def test_a_model_without_engines_is_a_clear_error(self):
        with pytest.raises(ModelLoadError, match="no engine that serves m"):
            await serve().start()


class TestPlanning:
    """The engines are asked what they can while one that is certain is loaded already."""

    @pytest.fixture
    def slow(self) -> ScriptedBackend:
        return ScriptedBackend("slow")

    @pytest.fixture
    def native(self) -> ScriptedBackend:
        return ScriptedBackend("native")

    @pytest.fixture
    def answered(self) -> asyncio.Event:
        return asyncio.Event()

    @pytest.fixture
    def failure(self) -> list[Exception]:
        """What the planner raises once the engines have answered."""
        return []

    @pytest.fixture
    def served(
        self,
        slow: ScriptedBackend,
        native: ScriptedBackend,
        answered: asyncio.Event,
        failure: list[Exception],
    ) -> ServedModel:
        model = ModelConfig(model_name="m")

        async def planner(begin: Begin) -> Plan:
            begin(native, model)
            await answered.wait()
            if failure:
                raise failure[0]
            decision = Decision(model="m", device="cpu", verdicts=())
            return Plan([(slow, model), (native, model)], decision)

        return ModelRegistry().add_planned(model, planner)

    async def test_the_engine_that_is_certain_answers_before_the_others_are_known(
        self, served: ServedModel, slow: ScriptedBackend, answered: asyncio.Event
    ):
        await served.start()
        assert served.decision is None
        assert (await ask(served))[0] == "native"
        assert [engine.engine for engine in (await served.health()).engines] == ["native"]
        (begun,) = served.candidates
        slow.loaded.clear()
        answered.set()
        await eventually(lambda: len(served.candidates) == 2)
        assert served.decision is not None
        assert served.candidates[1] is begun
        assert [e.state for e in (await served.health()).engines] == ["starting", "ready"]
        slow.loaded.set()
        await settle(served)
        assert (await ask(served))[0] == "slow"

    async def test_if_that_one_cannot_be_loaded_the_others_are_waited_for(
        self, served: ServedModel, native: ScriptedBackend, answered: asyncio.Event
    ):
        native.start_error = ModelLoadError("no room")
        starting = asyncio.create_task(served.start())
        await eventually(lambda: any(c.failure for c in served.candidates))
        assert not starting.done()
        answered.set()
        await starting
        assert (await ask(served))[0] == "slow"

    async def test_a_model_that_cannot_be_planned_is_down_and_nothing_goes_on(
        self,
        served: ServedModel,
        native: ScriptedBackend,
        answered: asyncio.Event,
        failure: list[Exception],
    ):
        native.loaded.clear()
        failure.append(ModelLoadError("a package is broken"))
        answered.set()
        with pytest.raises(ModelLoadError, match="package"):
            await served.start()
        assert (await served.health()).state is BackendState.DOWN
        assert native.stopped_with == 0

    async def test_what_answers_goes_on_when_the_others_cannot_be_planned(
        self,
        served: ServedModel,
        answered: asyncio.Event,
        failure: list[Exception],
        caplog: pytest.LogCaptureFixture,
    ):
        await served.start()
        failure.append(ModelLoadError("a package is broken"))
        answered.set()
        await eventually(lambda: "a package is broken" in caplog.text)
        assert (await ask(served))[0] == "native"

    async def test_the_end_does_not_wait_for_the_others(
        self, served: ServedModel, native: ScriptedBackend, slow: ScriptedBackend
    ):
        await served.start()
        await served.stop(3)
        assert native.stopped_with == 3
        assert slow.stopped_with is None
        with pytest.raises(EngineUnavailableError, match="stopped"):
            await served.choose()


class TestFailover:
    async def test_a_request_that_has_sent_nothing_is_answered_by_another(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        first.fail_at = (0, DOWN)
        served = await started(first, second)
        assert await ask(served) == ("b", "tok tok tok ")

    @pytest.mark.parametrize("at", range(1, 4))
    async def test_a_stream_is_gone_on_with_by_another(self, at: int):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        first.fail_at = (at, DOWN)
        served = await started(first, second)
        route = Route(served)
        chunks = [c async for c in route.chat(chat(), "id")]
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        assert "".join(delta.content or "" for delta in deltas) == "tok tok tok "
        assert [delta.role for delta in deltas].count("assistant") == 1
        finishes = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
        assert finishes == [None] * (len(finishes) - 1) + ["stop"]
        assert len({chunk.created for chunk in chunks}) == 1
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3
        assert route.engine == "b"

    async def test_a_completion_is_gone_on_with_too(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        first.fail_at = (2, DOWN)
        served = await started(first, second)
        request = CompletionRequest.model_validate({"model": "m", "prompt": "x"})
        answer = await collect_completion(Route(served).complete(request, "id"))
        assert answer.choices[0].text == "tok tok tok "

    @pytest.mark.parametrize(
        "fields", [{"return_token_ids": True}, {"prompt_logprobs": 1}], ids=str
    )
    async def test_what_is_told_of_tokens_is_told_by_one_engine(self, fields: dict[str, Any]):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        served = await started(first, second)
        first.fail_at = (0, DOWN)
        assert await ask(served, **fields) == ("b", "tok tok tok ")
        first.fail_at = (2, DOWN)
        with pytest.raises(EngineUnavailableError, match="fell over"):
            await ask(served, **fields)
        assert len(second.seen) == 1

    async def test_each_engine_is_tried_once(self):
        engines = [ScriptedBackend(name) for name in "abc"]
        for engine in engines:
            engine.fail_at = (1, DOWN)
        engines[2].continues = False
        served = await started(*engines)
        with pytest.raises(EngineUnavailableError, match="fell over"):
            await ask(served)
        assert [len(engine.seen) for engine in engines] == [1, 1, 0]

    async def test_what_is_wrong_with_the_request_is_not_tried_elsewhere(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        first.fail_at = (0, InvalidRequestError("No.", param="messages"))
        served = await started(first, second)
        with pytest.raises(InvalidRequestError, match="No"):
            await ask(served)
        assert not second.seen

    async def test_an_engine_that_was_not_needed_is_loaded_for_it(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        served = await started(first, second, standby="never")
        first.fail_at = (2, DOWN)
        assert await ask(served) == ("b", "tok tok tok ")

    async def test_what_an_engine_is_too_busy_for_is_answered_by_another_that_runs(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        first.fail_at = (0, BUSY)
        served = await started(first, second)
        assert await ask(served) == ("b", "tok tok tok ")

    @pytest.mark.parametrize("then", [QueueFullError("Busy too."), DOWN], ids=["busy", "down"])
    async def test_where_none_takes_it_the_first_that_was_busy_says_when_to_come_back(
        self, then: AxionError
    ):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        first.fail_at, second.fail_at = (0, BUSY), (0, then)
        served = await started(first, second)
        with pytest.raises(QueueFullError) as error:
            await ask(served)
        assert error.value.headers == {"Retry-After": "7"}
        assert len(second.seen) == 1

    async def test_no_engine_is_loaded_because_another_is_busy(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        first.fail_at = (0, BUSY)
        served = await started(first, second, standby="never")
        with pytest.raises(QueueFullError):
            await ask(served)
        assert served.candidates[1].starting is None

    async def test_an_engine_that_goes_down_has_the_next_one_loaded(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        served = await started(first, second, standby="never")
        first.state = BackendState.DOWN
        assert (await ask(served))[0] == "b"

    async def test_an_engine_that_is_down_is_passed_over(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        served = await started(first, second)
        first.state = BackendState.DOWN
        assert (await ask(served))[0] == "b"
        first.state = BackendState.READY
        assert (await ask(served))[0] == "a"

    async def test_an_engine_that_is_back_soon_takes_what_no_other_one_can(self):
        first, second = ScriptedBackend("plain", PLAIN), ScriptedBackend("native")
        served = await started(first, second)
        second.state, second.returns_soon = BackendState.DOWN, True
        assert (await ask(served))[0] == "plain"
        assert (await ask(served, n=2))[0] == "native"
        first.state = BackendState.DOWN
        assert (await ask(served))[0] == "native"

    async def test_failures_are_counted(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        served = await started(first, second)
        metrics = Metrics(lambda: 0, lambda: 0, lambda: 0)
        for at in (0, 2):
            first.fail_at = (at, DOWN)
            await collect_chat(Route(served, metrics).chat(chat(), "id"))
        text = metrics.render({}).decode()
        assert 'axion_backend_requests_total{engine="a",model="m"} 2.0' in text
        assert 'axion_backend_requests_total{engine="b",model="m"} 2.0' in text
        assert 'axion_failovers_total{engine="a",model="m",when="before"} 1.0' in text
        assert 'axion_failovers_total{engine="a",model="m",when="during"} 1.0' in text

    async def test_a_client_that_leaves_ends_the_request(self):
        first = ScriptedBackend("a")
        served = await started(first)
        async with aclosing(Route(served).chat(chat(), "id")) as chunks:
            await anext(chunks)
            assert first.running == 1
        assert first.running == 0

    async def test_a_prepared_chat_is_answered_by_another_too(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        first.fail_at = (1, DOWN)
        served = await started(first, second)
        route = Route(served)
        prepared = await route.prepare_chat(chat())
        answer = await collect_chat(prepared.run("id"))
        assert answer.choices[0].message.content == "tok tok tok "
        assert route.engine == "b"


class TestShadow:
    async def test_copies_are_compared(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        served = await started(first, second, shadow=("b", 1.0))
        for expected, tokens in (("same", 3), ("different", 2)):
            second.num_tokens = tokens
            assert await self.results(served) == [f'result="{expected}"']
        second.fail_at = (1, DOWN)
        assert await self.results(served) == ['result="failed"']

    async def test_what_is_drawn_at_random_is_not_compared(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        served = await started(first, second, shadow=("b", 1.0))
        await ask(served, temperature=1)
        await ask(served)
        assert not second.seen

    async def test_no_share_is_no_copy(self):
        first, second = ScriptedBackend("a"), ScriptedBackend("b")
        served = await started(first, second, shadow=("b", 0.0))
        await ask(served, temperature=0)
        assert not second.seen

    async def results(self, served: ServedModel) -> list[str]:
        metrics = Metrics(lambda: 0, lambda: 0, lambda: 0)
        await collect_chat(Route(served, metrics).chat(chat(temperature=0), "id"))

        def lines() -> list[str]:
            text = metrics.render({}).decode()
            return [line for line in text.splitlines() if "shadow_requests_total{" in line]

        await eventually(lambda: bool(lines()))
        return [line.split(",")[-1].split("}")[0] for line in lines()]


async def test_a_stopped_model_answers_nothing():
    backend = ScriptedBackend("a")
    served = await started(backend)
    await served.stop(2)
    assert backend.stopped_with == 2
    with pytest.raises(AxionError, match="stopped"):
        await ask(served)


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


class TestQueue:
    async def test_an_engine_without_a_queue_gets_no_more_than_its_limit(self):
        backend = ScriptedBackend("a")
        backend.has_own_queue = False
        go_on = asyncio.Event()
        backend.pause = go_on.wait
        served = await started(backend, max_upstream_requests=1, max_queue=2)
        metrics = Metrics(lambda: 0, lambda: 0, lambda: 0)
        requests = [
            asyncio.create_task(
                collect_chat(Route(served, metrics).chat(chat(priority=priority), "id"))
            )
            for priority in (0, 0, -1)
        ]
        while (await served.health()).engines[0].num_waiting < 2:
            await asyncio.sleep(0)
        text = metrics.render({"m": await served.health()}).decode()
        assert 'axion_queue_length{engine="a",model="m"} 2.0' in text
        assert 'axion_concurrency_limit{engine="a",model="m"} 1.0' in text
        with pytest.raises(QueueFullError):
            await ask(served)
        requests[1].cancel()  # its client leaves
        go_on.set()
        await asyncio.wait(requests)
        assert [request.priority for request in backend.seen] == [0, -1]
        text = metrics.render({}).decode()
        assert 'axion_queue_seconds_count{engine="a",model="m"} 2.0' in text

    async def test_an_engine_with_a_queue_gets_all_that_may_wait_in_it(self):
        backend = ScriptedBackend("native")
        go_on = asyncio.Event()
        backend.pause = go_on.wait
        served = await started(backend, max_queue=3)
        capacity = ModelConfig(model_name="m").max_num_seqs
        requests = [asyncio.create_task(ask(served)) for _ in range(capacity + 3)]
        while backend.running < len(requests):
            await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await ask(served)
        go_on.set()
        await asyncio.gather(*requests)

    async def test_what_an_engines_queue_has_no_room_for_is_answered_by_the_next(self):
        first, native = ScriptedBackend("a"), ScriptedBackend("native")
        first.has_own_queue = False
        go_on = asyncio.Event()
        first.pause = go_on.wait
        served = await started(first, native, max_upstream_requests=1, max_queue=0)
        held = asyncio.create_task(ask(served))
        while not first.running:
            await asyncio.sleep(0)
        assert (await ask(served))[0] == "native"
        go_on.set()
        assert (await held)[0] == "a"

    async def test_who_waits_for_an_engine_that_fails_is_answered_by_the_next(self):
        failing, native = ScriptedBackend("failing"), ScriptedBackend("native")
        failing.has_own_queue = False
        failing.fail_at = (0, DOWN)
        served = await started(failing, native, max_upstream_requests=1)
        answers = await asyncio.gather(*(ask(served) for _ in range(4)))
        assert [engine for engine, _ in answers] == ["native"] * 4
