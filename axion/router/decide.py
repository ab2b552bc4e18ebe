"""Which engines can serve a model, and why the others cannot: a function of facts alone."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import msgspec

from axion.backends.facts import DeviceFacts, EngineFacts, ModelFacts
from axion.hub.config import CODE_IS_NOT_RUN

_GIB = 2**30
# Longer lists are not shown: a message is for reading.
_MAX_SHOWN = 60
_HALVES = ("bfloat16", "float16")
# Of a weight, with its share of what belongs to a row or to a group.
_WEIGHT_BITS = {"int8": 8.0, "fp8": 8.0, "int4": 5.0}


class Reason(enum.StrEnum):
    """Why an engine is a candidate, or is not one."""

    ACCEPTED = "accepted"
    NOT_INSTALLED = "not_installed"
    NOT_CONFIGURED = "not_configured"
    NOT_ANSWERING = "not_answering"
    UNKNOWN_ENGINE = "unknown_engine"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNSUPPORTED_QUANTIZATION = "unsupported_quantization"
    UNSUPPORTED_DEVICE = "unsupported_device"
    UNSUPPORTED_DTYPE = "unsupported_dtype"
    UNSUPPORTED_PARALLELISM = "unsupported_parallelism"
    NOT_DETERMINISTIC = "not_deterministic"
    KNOWN_FAULT = "known_fault"
    NOT_ENOUGH_MEMORY = "not_enough_memory"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an engine can serve the model, for machines (`code`) and for people.

    Attributes:
        memory_bytes: that it needs; 0 where that is not known.
    """

    engine: str
    accepted: bool
    code: Reason
    reason: str
    version: str = ""
    memory_bytes: int = 0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The engines in the order in which they are wanted, each with a verdict.

    Attributes:
        standby_fits: the last engine that can serve the model has room beside the first.
    """

    model: str
    device: str
    verdicts: tuple[Verdict, ...]
    standby_fits: bool = True

    @property
    def engines(self) -> tuple[str, ...]:
        """Those that can serve the model."""
        return tuple(verdict.engine for verdict in self.verdicts if verdict.accepted)


def decide(
    model: ModelFacts,
    device: DeviceFacts,
    engines: Mapping[str, EngineFacts],
    order: Sequence[str],
    *,
    known: Sequence[str] = (),
    dtype: str = "auto",
    quantization: str = "none",
    tensor_parallel_size: int = 1,
    deterministic: bool = False,
    trust_remote_code: bool = False,
) -> Decision:
    """Judge each engine of `order`.

    Args:
        engines: facts by name.
        known: names of the engines that there are; without it those of `engines`.
        dtype: the number format that the settings ask for, or `auto`.
        quantization: what plain weights are to be quantized to, or `none`.
        tensor_parallel_size: GPUs that are to share the model.
        deterministic: a request must get the same bits in whatever batch.
        trust_remote_code: Python that comes with a model may be run.
    """
    verdicts = tuple(
        _judge(
            name,
            engine,
            model,
            device,
            dtype,
            quantization,
            tensor_parallel_size,
            deterministic,
            trust_remote_code,
        )
        if (engine := engines.get(name)) is not None
        else _unknown(name, known or list(engines))
        for name in dict.fromkeys(order)
    )
    accepted = [verdict for verdict in verdicts if verdict.accepted]
    return Decision(
        model=model.name,
        device=device.kind,
        verdicts=verdicts,
        standby_fits=len(accepted) < 2 or fit_together(accepted[0], accepted[-1], device),
    )


def fit_together(first: Verdict, second: Verdict, device: DeviceFacts) -> bool:
    """Whether the device has room for two engines that can serve the model."""
    needed = first.memory_bytes + second.memory_bytes
    return not device.free_bytes or needed <= device.free_bytes


def _judge(
    name: str,
    engine: EngineFacts,
    model: ModelFacts,
    device: DeviceFacts,
    dtype: str,
    quantization: str,
    tensor_parallel_size: int,
    deterministic: bool,
    trust_remote_code: bool,
) -> Verdict:
    need = _memory_bytes(engine, model, device, dtype, quantization) // tensor_parallel_size
    for code, reason in (
        _installation(engine),
        _files(engine, model),
        _quantization(engine, model, quantization),
        _architecture(engine, model, device, trust_remote_code),
        _device(engine, model, device, dtype),
        _parallelism(engine, tensor_parallel_size),
        _determinism(engine, deterministic),
        _memory(need, model, device),
    ):
        if code is not Reason.ACCEPTED:
            return _refused(name, code, reason, engine.version)
    return Verdict(
        engine=name,
        accepted=True,
        code=Reason.ACCEPTED,
        reason=_acceptance(engine, model, device, need),
        version=engine.version,
        memory_bytes=need,
    )


_Finding = tuple[Reason, str]
_FINE: _Finding = (Reason.ACCEPTED, "")


def _refused(engine: str, code: Reason, reason: str, version: str = "") -> Verdict:
    return Verdict(engine=engine, accepted=False, code=code, reason=reason, version=version)


def _unknown(name: str, known: Sequence[str]) -> Verdict:
    reason = f"There is no engine {name!r}. Known: {', '.join(sorted(known))}."
    return _refused(name, Reason.UNKNOWN_ENGINE, reason)


def _acceptance(engine: EngineFacts, model: ModelFacts, device: DeviceFacts, need: int) -> str:
    what = ", ".join(model.architectures) or "the model"
    listed = "lists" if engine.architectures is not None else "is not asked whether it has"
    if _is_fallback(engine, model):
        listed = "serves by its fallback (see docs/models.md)"
    elif engine.architectures is not None and engine.architectures.isdisjoint(model.architectures):
        listed = "serves by the model's own Python code (TRUST_REMOTE_CODE)"
    memory = f", and needs some {need / _GIB:.1f} GiB" if need >= _GIB / 10 else ""
    return f"It is there, runs on {device.kind} and {listed} {what}{memory}."


def _installation(engine: EngineFacts) -> _Finding:
    if engine.problem:
        return Reason.NOT_ANSWERING, engine.problem
    if not engine.installed:
        if engine.command:
            return (
                Reason.NOT_INSTALLED,
                f"The command {engine.command} is not found; {engine.variable} may name it.",
            )
        return Reason.NOT_CONFIGURED, f"It needs {engine.variable}."
    return _FINE


def _files(engine: EngineFacts, model: ModelFacts) -> _Finding:
    if model.format not in engine.formats:
        return (
            Reason.UNSUPPORTED_FORMAT,
            f"The weights are {model.format}; it loads {' and '.join(sorted(engine.formats))}.",
        )
    quantizations = engine.quantizations
    if model.quantization and quantizations is not None and model.quantization not in quantizations:
        return (
            Reason.UNSUPPORTED_QUANTIZATION,
            f"The weights are quantized by {model.quantization}; it loads "
            f"{', '.join(sorted(quantizations)) or 'none that are quantized'}.",
        )
    return _FINE


def _is_fallback(engine: EngineFacts, model: ModelFacts) -> bool:
    """Whether it has no class of its own for the model."""
    named = set(model.architectures)
    return bool(named & engine.by_fallback) and named.isdisjoint(
        (engine.architectures or set()) - engine.by_fallback
    )


def _quantization(engine: EngineFacts, model: ModelFacts, quantization: str) -> _Finding:
    if quantization == "none":
        return _FINE
    if model.quantization:
        return (
            Reason.UNSUPPORTED_QUANTIZATION,
            f"QUANTIZATION is {quantization}, and the weights are quantized already, by "
            f"{model.quantization}.",
        )
    if quantization not in engine.quantizes:
        return (
            Reason.UNSUPPORTED_QUANTIZATION,
            f"QUANTIZATION is {quantization}, to which it does not quantize weights.",
        )
    return _FINE


def _architecture(
    engine: EngineFacts, model: ModelFacts, device: DeviceFacts, trust_remote_code: bool
) -> _Finding:
    if engine.architectures is None:
        return _FINE
    for architecture in model.architectures:
        for key in (architecture, f"{architecture}/{device.kind}"):
            if key in engine.faults:
                return Reason.KNOWN_FAULT, engine.faults[key]
        if architecture in engine.architectures:
            return _FINE
    shown = ", ".join(model.architectures)[:200] or "which config.json does not name"
    listed = sorted(engine.architectures)
    names = f": {', '.join(listed)}" if len(listed) <= _MAX_SHOWN else ""
    whys = [engine.refusals[name] for name in model.architectures if name in engine.refusals]
    if whys:
        return Reason.UNSUPPORTED_ARCHITECTURE, f"It does not serve {shown}: {whys[0]}"
    has_code = model.has_remote_code and engine.remote_code
    if has_code and trust_remote_code:
        return _FINE
    return (
        Reason.UNSUPPORTED_ARCHITECTURE,
        f"The architecture {shown} is not among the {len(listed)} that it lists{names}."
        + (f" {CODE_IS_NOT_RUN}" if has_code else ""),
    )


def _device(engine: EngineFacts, model: ModelFacts, device: DeviceFacts, dtype: str) -> _Finding:
    if device.kind not in engine.devices:
        return (
            Reason.UNSUPPORTED_DEVICE,
            f"It needs {' or '.join(sorted(engine.devices))}, and the model is to run on "
            f"{device.kind}.",
        )
    dtypes = engine.dtypes.get(device.kind)
    if dtype != "auto" and dtypes is not None and dtype not in dtypes:
        return (
            Reason.UNSUPPORTED_DTYPE,
            f"DTYPE is {dtype}; on {device.kind} it computes in {' or '.join(sorted(dtypes))}.",
        )
    head_dims = engine.head_dims.get(device.kind)
    if model.head_dim and head_dims is not None and model.head_dim not in head_dims:
        return (
            Reason.KNOWN_FAULT,
            f"The attention heads have size {model.head_dim}; on {device.kind} it takes "
            f"{', '.join(map(str, sorted(head_dims)))}.",
        )
    return _FINE


def _determinism(engine: EngineFacts, deterministic: bool) -> _Finding:
    if deterministic and not engine.deterministic:
        return (
            Reason.NOT_DETERMINISTIC,
            "DETERMINISTIC is on; what it computes for a request depends on the others beside it.",
        )
    return _FINE


def _parallelism(engine: EngineFacts, tensor_parallel_size: int) -> _Finding:
    if tensor_parallel_size > 1 and not engine.tensor_parallel:
        return (
            Reason.UNSUPPORTED_PARALLELISM,
            f"TENSOR_PARALLEL_SIZE is {tensor_parallel_size}; it computes on one device.",
        )
    return _FINE


def _memory_bytes(
    engine: EngineFacts, model: ModelFacts, device: DeviceFacts, dtype: str, quantization: str
) -> int:
    computed = engine.dtypes.get(device.kind)
    if dtype == "auto" and computed is not None and len(computed) == 1:
        (dtype,) = computed
    widened = 2 if dtype == "float32" and model.dtype in _HALVES and not model.quantization else 1
    need = float(model.weight_bytes * widened)
    if quantization in _WEIGHT_BITS:
        # The embedding, and the few numbers that are no linear layer's, stay as they are.
        plain_bits = 16 * widened if model.dtype in _HALVES else 32
        of_embedding = model.num_embedding_weights * plain_bits / 8
        of_layers = max(need - of_embedding, 0.0)
        need = min(need, of_embedding) + of_layers * _WEIGHT_BITS[quantization] / plain_bits
    return int(need * engine.memory_factor.get(device.kind, 0.0))


def _memory(need: int, model: ModelFacts, device: DeviceFacts) -> _Finding:
    if device.free_bytes and need > device.free_bytes:
        return (
            Reason.NOT_ENOUGH_MEMORY,
            f"It needs some {need / _GIB:.1f} GiB for weights of "
            f"{model.weight_bytes / _GIB:.1f} GiB, and {device.free_bytes / _GIB:.1f} GiB of "
            f"{device.kind} memory are free.",
        )
    return _FINE
