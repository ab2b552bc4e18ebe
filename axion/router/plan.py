"""From a model and the settings to the backends that are to serve it, and the reasons."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeGuard, TypeVar

import msgspec

from axion.backends.base import InferenceBackend, ModelConfig
from axion.backends.engines import Engine, engine_names, load_engine
from axion.backends.facts import DeviceFacts, EngineFacts, ModelFacts, device_facts, model_facts
from axion.backends.spawned import SpawnedBackend
from axion.errors import AxionError, ModelLoadError
from axion.hub.resolve import DEMO_HINT, resolve
from axion.hub.snapshot import PYTHON
from axion.router.decide import Decision, decide, fit_together
from axion.settings import Settings, SettingsError, listed, model_folders

logger = logging.getLogger("axion.router")

T = TypeVar("T")

# Stage, bytes done, bytes in all.
Show = Callable[[str, int, int], None]
# Takes a backend that the plan is certain to have, and what it is to load.
Begin = Callable[[InferenceBackend, ModelConfig], None]

# What of a GPU's memory the cache of an engine that stands by may take.
_STANDBY_CACHE_SHARE = 0.05


@dataclass(frozen=True)
class Plan:
    """The backends of a model, the one that is wanted most first, each with what it is to load.

    Attributes:
        decision: why these; None where nobody had to decide.
    """

    backends: Sequence[tuple[InferenceBackend, ModelConfig]]
    decision: Decision | None = None


async def plan(
    model: ModelConfig, settings: Settings, show: Show, begin: Begin | None = None
) -> Plan:
    """Find the model's files, ask the engines that the settings name, and decide.

    Args:
        begin: called before the engines have answered, if whatever they answer the last one is to
            run; the plan has that backend too.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelLoadError: no engine can serve it; the message has the reason of each.
        SettingsError: an engine in AXION_BACKENDS, or DRAFT_MODEL, is not there.
    """
    engines = load_engines(listed(settings.axion_backends))
    for name, known_engine in engines.items():
        if known_engine is None:
            known_names = ", ".join(sorted(engine_names()))
            raise SettingsError(
                f"AXION_BACKENDS: there is no engine {name!r}. Known: {known_names}."
            )
    asked = {name: engine for name, engine in engines.items() if _is_spawned(engine)}

    @cache
    def backend(name: str) -> InferenceBackend:
        engine = engines[name]
        assert engine is not None
        return engine.from_settings(settings, partial(show, "Loading weights"))

    async with _running(engine_facts(asked, settings)) as asking:
        device, facts = await asyncio.gather(
            device_facts(settings.device),
            engine_facts({n: e for n, e in engines.items() if n not in asked}, settings),
        )
        facts |= {name: engine.unasked_facts() for name, engine in asked.items()}
        known = ModelFacts(name=model.name)
        if engines.keys() != {"remote"}:
            model, known = await _find(model, facts, settings, show)
        if begin is not None:
            widest = decide_for(known, device, facts, settings)
            if _needs_last(model, device, widest, asked, settings):
                begin(backend(widest.engines[-1]), model)
        facts |= await asking
    decision = decide_for(known, device, facts, settings)
    _tell(decision, settings)
    if not decision.engines:
        raise ModelLoadError(no_engine(decision))
    backends = [backend(name) for name in decision.engines]
    configs = _shares(model, device, decision, settings)
    return Plan(tuple(zip(backends, configs, strict=True)), decision)


async def _find(
    model: ModelConfig, facts: Mapping[str, EngineFacts], settings: Settings, show: Show
) -> tuple[ModelConfig, ModelFacts]:
    """The model with the place of its files, and what they say."""
    formats = weight_formats(facts) | ({PYTHON} if settings.trust_remote_code else set())
    snapshot = await resolve(
        model.model_name,
        on_progress=partial(show, f"Downloading {model.model_name}"),
        formats=formats,
        folders=model_folders(settings),
    )
    draft_model = model.draft_model
    if draft_model:
        try:
            draft = await resolve(
                draft_model,
                on_progress=partial(show, f"Downloading {draft_model}"),
                formats=formats,
                folders=model_folders(settings),
            )
        except AxionError as error:
            reason = error.message.removesuffix(DEMO_HINT).rstrip()
            raise SettingsError(f"DRAFT_MODEL: {reason}") from None
        draft_model = str(draft.path)
    known = await asyncio.to_thread(model_facts, model.name, snapshot.path)
    if known.max_length:
        logger.info(
            "the context of %s is %d tokens: the model takes %d, and MAX_SEQ_LEN is %d",
            model.name,
            min(model.max_seq_len, known.max_length),
            known.max_length,
            model.max_seq_len,
        )
    found = msgspec.structs.replace(
        model,
        model_name=str(snapshot.path),
        served_name=model.name,
        draft_model=draft_model,
        # Some engines refuse more than the model is meant for.
        max_seq_len=min(model.max_seq_len, known.max_length or model.max_seq_len),
    )
    return found, known


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """A task that does not outlive the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _is_spawned(engine: Any) -> TypeGuard[type[SpawnedBackend]]:
    return isinstance(engine, type) and issubclass(engine, SpawnedBackend)


def _needs_last(
    model: ModelConfig,
    device: DeviceFacts,
    widest: Decision,
    asked: Collection[str],
    settings: Settings,
) -> bool:
    """Whether the last engine is to run, with nothing but `model` to load, whatever is answered.

    Args:
        widest: the decision if each engine that is asked can serve the model.
    """
    if not widest.engines or widest.engines[-1] in asked:
        return False
    *others, last = (verdict for verdict in widest.verdicts if verdict.accepted)
    if not others:
        return True
    return (
        settings.standby != "never"
        and all(fit_together(other, last, device) for other in others)
        and _shares(model, device, widest, settings)[-1] == model
    )


def load_engines(names: Sequence[str]) -> dict[str, Engine | None]:
    """The classes of engines by name; None for one that there is not."""
    return {name: load_engine(name) for name in names}


async def engine_facts(
    engines: Mapping[str, Engine | None], settings: Settings
) -> dict[str, EngineFacts]:
    """What is known of each engine; all are asked at once."""
    found = {name: engine for name, engine in engines.items() if engine is not None}
    facts = await asyncio.gather(*(engine.facts(settings) for engine in found.values()))
    return dict(zip(found, facts, strict=True))


def weight_formats(facts: Mapping[str, EngineFacts]) -> frozenset[str]:
    """Formats that one of the engines loads."""
    return frozenset(name for engine in facts.values() for name in engine.formats)


def decide_for(
    model: ModelFacts,
    device: DeviceFacts,
    facts: Mapping[str, EngineFacts],
    settings: Settings,
) -> Decision:
    """The decision that the settings lead to."""
    return decide(
        model,
        device,
        facts,
        listed(settings.axion_backends),
        known=engine_names(),
        dtype=settings.dtype,
        quantization=settings.quantization,
        tensor_parallel_size=settings.tensor_parallel_size,
        deterministic=settings.deterministic,
        trust_remote_code=settings.trust_remote_code,
    )


def no_engine(decision: Decision) -> str:
    """Why no engine serves a model, for people."""
    reasons = [f"{verdict.engine}: {verdict.reason}" for verdict in decision.verdicts]
    if len(reasons) == 1:
        return f"{decision.model} cannot be served. {decision.verdicts[0].reason}"
    return "\n  ".join([f"No engine can serve {decision.model}:", *reasons])


def _tell(decision: Decision, settings: Settings) -> None:
    for verdict in decision.verdicts:
        word = "can" if verdict.accepted else "cannot"
        logger.info("%s %s serve %s: %s", verdict.engine, word, decision.model, verdict.reason)
    if not decision.standby_fits and settings.standby != "never":
        logger.info(
            "%s does not stand by: there is no memory for it beside %s",
            decision.engines[-1],
            decision.engines[0],
        )


def _shares(
    model: ModelConfig, device: DeviceFacts, decision: Decision, settings: Settings
) -> list[ModelConfig]:
    """The model as each engine is to load it.

    Engines take most of a GPU's memory for their caches when they start. Where one stands by
    beside another, it gets a small cache, and the other one what is left.
    """
    accepted = [verdict for verdict in decision.verdicts if verdict.accepted]
    configs = [model] * len(accepted)
    together = len(accepted) > 1 and settings.standby != "never" and decision.standby_fits
    if together and device.kind == "cuda" and device.total_bytes:
        cache = model.kv_cache_bytes or int(device.total_bytes * _STANDBY_CACHE_SHARE)
        taken = (accepted[-1].memory_bytes + cache) / device.total_bytes
        left = max(0.1, model.memory_fraction - taken)
        configs[0] = msgspec.structs.replace(model, memory_fraction=left)
        configs[-1] = msgspec.structs.replace(model, kv_cache_bytes=cache)
    return configs
