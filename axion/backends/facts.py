"""What is known of a model, a device and the engines, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

WeightFormat = Literal["safetensors", "gguf"]
DeviceKind = Literal["cpu", "cuda"]


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's files say.

    Attributes:
        architectures: as in config.json, or the one name of a GGUF file's `general.architecture`.
        quantization: `quant_method` of config.json's `quantization_config`; empty for none.
        weight_bytes: of the files.
        head_dim: 0 where config.json does not tell.
    """

    name: str
    architectures: tuple[str, ...] = ()
    format: WeightFormat = "safetensors"
    quantization: str = ""
    dtype: str = ""
    weight_bytes: int = 0
    head_dim: int = 0
    has_remote_code: bool = False


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is to run on.

    Attributes:
        free_bytes: of the device's memory; 0 where nobody could tell.
    """

    kind: DeviceKind = "cpu"
    name: str = ""
    free_bytes: int = 0


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one engine on this machine, and what differs between engines.

    Attributes:
        command: what starts it, and `variable` what may name another; empty for engines that
            need none.
        installed: its command is there.
        problem: why it could not be asked, if it was and could not.
        architectures: those that the engine itself lists; None if it was not asked.
        devices: those that it computes on.
        dtypes: those that it computes with on a device; any, where a device is not named.
        faults: by `architecture` or `architecture/device`: listed by the engine, and known to
            fail.
        memory_factor: by device, memory that it needs as a multiple of the weights' bytes.
        min_head_dim: the smallest head size that its attention takes, by device.
    """

    engine: str
    command: str = ""
    variable: str = ""
    installed: bool = True
    version: str = ""
    problem: str = ""
    architectures: frozenset[str] | None = None
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    formats: frozenset[str] = frozenset({"safetensors"})
    quantizations: frozenset[str] | None = None
    dtypes: Mapping[str, frozenset[str]] = {}
    faults: Mapping[str, str] = {}
    memory_factor: Mapping[str, float] = {}
    min_head_dim: Mapping[str, int] = {}
