"""Which engines can serve a model, and why the others cannot: a function of facts alone."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import msgspec

from axion.backends.facts import DeviceFacts, EngineFacts, ModelFacts

_GIB = 2**30


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
    KNOWN_FAULT = "known_fault"
    NOT_ENOUGH_MEMORY = "not_enough_memory"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an engine can serve the model, for machines (`code`) and for people."""

    engine: str
    accepted: bool
    code: Reason
    reason: str
    version: str = ""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The engines in the order in which they are wanted, each with a verdict."""

    model: str
    device: str
    verdicts: tuple[Verdict, ...]

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
    dtype: str = "auto",
) -> Decision:
    """Judge each engine of `order`.

    Args:
        engines: facts by name.
        dtype: the number format that the settings ask for, or `auto`.
    """
    return Decision(
        model=model.name,
        device=device.kind,
        verdicts=tuple(
            _judge(name, engines.get(name), engines, model, device, dtype)
            for name in dict.fromkeys(order)
        ),
    )


def _judge(
    name: str,
    engine: EngineFacts | None,
    engines: Mapping[str, EngineFacts],
    model: ModelFacts,
    device: DeviceFacts,
    dtype: str,
) -> Verdict:
    if engine is None:
        known = ", ".join(sorted(engines))
        return _refused(name, Reason.UNKNOWN_ENGINE, f"There is no such engine. Known: {known}.")
    for code, reason in (
        _installation(engine),
        _files(engine, model),
        _architecture(engine, model, device),
        _device(engine, model, device, dtype),
        _memory(engine, model, device),
    ):
        if code is not Reason.ACCEPTED:
            return _refused(name, code, reason, engine.version)
    return Verdict(
        engine=name,
        accepted=True,
        code=Reason.ACCEPTED,
        reason=_acceptance(engine, model, device),
        version=engine.version,
    )


_Finding = tuple[Reason, str]
_FINE: _Finding = (Reason.ACCEPTED, "")


def _refused(engine: str, code: Reason, reason: str, version: str = "") -> Verdict:
    return Verdict(engine=engine, accepted=False, code=code, reason=reason, version=version)


def _acceptance(engine: EngineFacts, model: ModelFacts, device: DeviceFacts) -> str:
    what = ", ".join(model.architectures) or "the model"
    listed = "lists" if engine.architectures is not None else "is not asked whether it has"
    return f"It is there, runs on {device.kind} and {listed} {what}."


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


def _architecture(engine: EngineFacts, model: ModelFacts, device: DeviceFacts) -> _Finding:
    if engine.architectures is None:
        return _FINE
    for architecture in model.architectures:
        for key in (architecture, f"{architecture}/{device.kind}"):
            if key in engine.faults:
                return Reason.KNOWN_FAULT, engine.faults[key]
        if architecture in engine.architectures:
            return _FINE
    shown = ", ".join(model.architectures) or "which config.json does not name"
    return (
        Reason.UNSUPPORTED_ARCHITECTURE,
        f"The architecture {shown} is not among the {len(engine.architectures)} that it lists.",
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
    smallest = engine.min_head_dim.get(device.kind, 0)
    if model.head_dim and model.head_dim < smallest:
        return (
            Reason.KNOWN_FAULT,
            f"The attention heads have size {model.head_dim}; on {device.kind} it takes "
            f"{smallest} and more.",
        )
    return _FINE


def _memory(engine: EngineFacts, model: ModelFacts, device: DeviceFacts) -> _Finding:
    need = model.weight_bytes * engine.memory_factor.get(device.kind, 0.0)
    if device.free_bytes and need > device.free_bytes:
        return (
            Reason.NOT_ENOUGH_MEMORY,
            f"It needs some {need / _GIB:.1f} GiB for weights of "
            f"{model.weight_bytes / _GIB:.1f} GiB, and {device.free_bytes / _GIB:.1f} GiB of "
            f"{device.kind} memory are free.",
        )
    return _FINE
