"""What the API process and an engine process say to each other: msgpack over a private socket."""

from __future__ import annotations

import msgspec

from axion.types import EngineConfig, EngineInfo, EngineStats, SamplingParams, SequenceOutput


class Start(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Load the model; the first message, answered by `EngineReady` or `EngineFailed`."""

    config: EngineConfig


class AddRequest(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Compute a sequence.

    Attributes:
        token_ids: the prompt, and the tokens that were generated for it before.
        num_generated: how many of them those are.
    """

    request_id: str
    token_ids: list[int]
    params: SamplingParams
    cache_salt: str = ""
    priority: int = 0
    num_generated: int = 0


class AbortRequest(msgspec.Struct, tag=True, array_like=True, frozen=True):
    request_ids: list[str]


class Shutdown(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Drop what is running and exit."""


class Ping(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Send `StepOutputs`, as after every message: a sign of life."""


class LoadProgress(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Bytes of weights read so far."""

    num_bytes_done: int
    num_bytes_total: int


class EngineReady(msgspec.Struct, tag=True, array_like=True, frozen=True):
    info: EngineInfo


class EngineFailed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """The engine cannot start; the message says why."""

    message: str


class StepOutputs(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """All outputs of one engine step."""

    outputs: list[SequenceOutput]
    stats: EngineStats


ToEngine = Start | AddRequest | AbortRequest | Ping | Shutdown
FromEngine = LoadProgress | EngineReady | EngineFailed | StepOutputs

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
