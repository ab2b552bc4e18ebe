"""What is said between `axion parity` and `axion new-model` and the process that works for them."""

from __future__ import annotations

from typing import Literal

import msgspec

Dtype = Literal["float32", "bfloat16", "float16"]


class CompareRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Compare a model with transformers.

    Attributes:
        model: as the user named it.
        path: folder with config.json, and unless `tiny` weights; None: `model` is an architecture
            or a model type of transformers, which is built from its default configuration.
        tiny: a small model of this architecture, with random parameters.
        prompts: texts, for the model's own tokenizer; none: random token ids.
        tolerance: on differences, relative to a module's largest output or to 1.
    """

    model: str
    path: str | None
    tiny: bool
    dtype: Dtype
    prompts: tuple[str, ...] = ()
    max_prompt_tokens: int = 1024
    num_tokens: int = 32
    tolerance: float | None = None


class NewModelRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Write the starting file of an architecture, and its row.

    Attributes:
        name: an architecture or a model type of transformers.
        checkout: the folder that holds `axion` and `tests`.
    """

    name: str
    checkout: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where two tensors are furthest apart.

    Attributes:
        prompt: index of the prompt.
        position: index of the token in it.
        index: where in the token's vector.
        max_rel: `max_abs`, in parts of the reference's largest number or of 1.
    """

    prompt: int
    position: int
    index: tuple[int, ...]
    axion: float
    transformers: float
    max_abs: float
    max_rel: float


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """One module of transformers that Axion has too, over all prompts.

    Attributes:
        difference: where its outputs are furthest apart; None: they cannot be compared.
    """

    name: str
    equal: bool
    difference: Difference | None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """The first module that computes something else.

    Attributes:
        module: by its name in transformers.
        reason: what is different in it.
        difference: None where nothing could be computed.
    """

    module: str
    reason: str
    difference: Difference | None = None


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """32 greedy tokens for every prompt.

    Attributes:
        way: how the engine came to them: alone, in a mixed batch, in chunks, ...
        reason: what is different.
    """

    way: str
    equal: bool
    reason: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    model: str
    architecture: str
    reference: str
    dtype: str
    tolerance: float
    prompt_lengths: tuple[int, ...]
    modules: tuple[Module, ...]
    fault: Fault | None
    generations: tuple[Generation, ...]
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return self.fault is None and all(generation.equal for generation in self.generations)


class Written(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What `axion new-model` wrote, and what is known of the architecture.

    Attributes:
        files: relative to the checkout.
        relatives: class of transformers, and those that it is made of.
        tensors: that a standard decoder has not.
        fields: of the configuration that change what the reference computes and that nobody reads.
    """

    architecture: str
    files: tuple[str, ...]
    relatives: tuple[str, ...]
    tensors: tuple[str, ...]
    fields: tuple[str, ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    message: str


Request = CompareRequest | NewModelRequest
Answer = Report | Written | Failed
