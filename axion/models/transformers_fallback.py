"""Every other decoder: transformers' own class, over the paged KV cache.

The class is built as it is. It calls attention through transformers' attention interface, and
there ours takes its place: a step's flat batch goes through the model as one row
`[1, num_tokens]`, attention finds each token's sequence in the `ForwardContext`, and all else in a
decoder looks at one token at a time. That this is so is not assumed. Before the weights are read
the model is run on the meta device, where every call of attention shows its shapes and its mask;
when they are read, a token must come out the same whatever is beside it in the batch.

Its linear layers and experts are Axion's own (`fallback_layers`), quantized as those of any model.
What differs from a class of our own: nothing is fused, latent attention's keys and values are
cached expanded, and a rope that depends on the length is served only as far as it does not.
"""

from __future__ import annotations

import copy
import functools
import importlib.resources
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.context import ForwardContext, KVCacheSpec
from axion.models.base import CausalLM
from axion.models.fallback_calls import (
    OURS,
    PROBING,
    Attend,
    Local,
    Paged,
    Probe,
    UnsupportedError,
    register,
)
from axion.models.fallback_config import max_length, read_config
from axion.models.fallback_head import without_decoder
from axion.models.fallback_layers import OwnLayers, own_layers, remove
from axion.models.fallback_weights import check_dtypes, check_report, readers
from axion.quantization.method import QuantizationMethod
from axion.quantization.stored import StoredTensor

if TYPE_CHECKING:  # it takes seconds to import, and only the models in this file need it
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger("axion.models")

_PROBE_TOKENS = 4
# How far a token's hidden state may be from itself in another batch, in parts of its norm.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass
class _Config:
    """What the engine asks a model's configuration for."""

    vocab_size: int


class TransformersCausalLM(CausalLM):
    """A class of transformers, as an architecture of ours.

    Attributes:
        transformers_cls: the class.
        hf_config_cls: what it reads config.json by.
        source: whose class it is, for people.
    """

    transformers_cls: ClassVar[type[PreTrainedModel]]
    hf_config_cls: ClassVar[type[PreTrainedConfig]]
    source: ClassVar[str] = "transformers' class"
    renamed_tensors = ()

    def __init__(self, config: dict[str, Any]) -> None:
        """Build it on the meta device, and find its calls of attention.

        Args:
            config: config.json.

        Raises:
            ModelLoadError: it cannot be served; the message says why.
        """
        nn.Module.__init__(self)
        register()
        with self._refusing():
            self.hf_config = read_config(self.hf_config_cls, config)
        self.specs: list[KVCacheSpec] = []
        self.first_position = 0
        with self._refusing(), torch.device("meta"), torch.inference_mode():
            if self.hf_config.is_encoder_decoder:
                raise UnsupportedError("it reads what an encoder has made of its input")
            if getattr(self.hf_config.get_text_config(), "prefix_lm", False):
                raise UnsupportedError("tokens of a prompt attend to those behind them (prefix_lm)")
            self.whole = self._build()
            try:
                self._find_calls()
            except RuntimeError:
                kinds = set(getattr(self.hf_config.get_text_config(), "layer_types", None) or [""])
                if self.transformers_cls._is_stateful and not kinds <= _ATTENTION_LAYERS:
                    raise UnsupportedError("it keeps a recurrent state") from None
                # What it does depends on numbers, of which there are none yet: see `load`.
                logger.debug("%s cannot be run on the meta device", self.name, exc_info=True)

    @property
    def name(self) -> str:
        return type(self).__name__

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Whatever transformers raises about the model is a refusal to serve it."""
        try:
            yield
        except ModelLoadError:
            raise
        except UnsupportedError as error:
            reason = str(error)
        except Exception as error:  # of any of some two hundred classes
            logger.debug("%s cannot be built", self.name, exc_info=True)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if PROBING in reason or "argument 'attend'" in reason:
                reason = "its attention does not go through transformers' interface"
        else:
            return
        raise ModelLoadError(
            f"Axion serves {self.name[:80]} by {self.source}, which cannot be done: {reason}."
        )

    def _build(self) -> PreTrainedModel:
        config = copy.deepcopy(self.hf_config)
        config._attn_implementation = PROBING
        config._experts_implementation = PROBING
        return self.transformers_cls(config).eval()

    def _find_calls(self) -> None:
        """Run the model once: what calls attention, with which shapes and masks, and in which of
        its modules are all the layers."""
        attend = Probe()
        entered: list[int] = []  # calls of attention before each module that is running
        decoders: list[tuple[int, str, int]] = []

        def enter(*_: Any) -> None:
            entered.append(len(attend.specs))

        def leave(name: str, module: nn.Module, args: Any, output: Any) -> None:
            num_calls_before = entered.pop()
            if name and num_calls_before == 0 and hasattr(output, "last_hidden_state"):
                decoders.append((len(entered), name, len(attend.specs)))

        hooks = [
            hook
            for name, module in self.whole.named_modules()
            for hook in (
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(functools.partial(leave, name)),
            )
        ]
        device = self.whole.device
        input_ids = torch.zeros(1, _PROBE_TOKENS, dtype=torch.int64, device=device)
        try:
            output = self.whole(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                position_ids=torch.arange(_PROBE_TOKENS, device=device)[None],
                use_cache=False,
                attend=attend,
            )
        finally:
            for hook in hooks:
                hook.remove()
        if not attend.specs:
            raise UnsupportedError("its attention does not go through transformers' interface")
        whole = [(depth, name) for depth, name, calls in decoders if calls == len(attend.specs)]
        if not whole:
            raise UnsupportedError("none of its modules goes from token ids to hidden states")
        self.specs = attend.specs
        self.config = _Config(output.logits.shape[-1])
        self.decoder_name = min(whole)[1]

    def divide(
        self, tensors: Mapping[str, StoredTensor], method: QuantizationMethod, dtype: torch.dtype
    ) -> OwnLayers:
        """Replace what layers of Axion's own can be: `load` takes the rest of the weights, and
        `finish` these layers.

        Args:
            tensors: by their names in the checkpoint.

        Raises:
            ModelLoadError: the model cannot be served; the message says why.
        """
        with self._refusing():
            layers = own_layers(self.whole, tensors, method, dtype)
        self._own_paths = layers.paths
        remove(self.whole, layers.paths)
        return layers

    def load(
        self,
        tensors: Mapping[str, StoredTensor],
        device: torch.device,
        dtype: torch.dtype,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Take the weights that transformers loads.

        Args:
            tensors: by their names in the checkpoint.
            on_progress: called with (bytes read, bytes in all).

        Raises:
            ModelLoadError: the weights are not what config.json describes; the message says why.
        """
        if self.name not in _verified():
            logger.warning(
                "%s has not been compared with transformers: its answers may be wrong", self.name
            )
        check_dtypes(tensors, self.whole)
        with self._refusing(), torch.inference_mode():
            self.whole, report = self._class_without_own().from_pretrained(
                None,
                config=self.hf_config,
                state_dict=readers(tensors, dtype.itemsize, on_progress),
                dtype=dtype,
                attn_implementation=PROBING,
                experts_implementation=OURS,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            check_report(report)
            self.whole.to(device).eval().requires_grad_(False)

    def _class_without_own(self) -> type[PreTrainedModel]:
        cls, paths = self.transformers_cls, self._own_paths

        def build(model: PreTrainedModel, config: PreTrainedConfig) -> None:
            cls.__init__(model, config)
            remove(model, paths)

        return type(cls.__name__, (cls,), {"__init__": build, "__module__": cls.__module__})

    def finish(self, layers: nn.Module) -> None:
        """Take the layers of Axion's own, and see that tokens may be batched.

        Args:
            layers: at their paths.

        Raises:
            ModelLoadError: the model cannot be served; the message says why.
        """
        for path in self._own_paths:
            self.whole.set_submodule(path, layers.get_submodule(path))
        with self._refusing(), torch.inference_mode():
            if not self.specs:
                self._find_calls()
            self.whole.config._attn_implementation = OURS
            # In a tuple, for it is not another part of this module.
            self._head = (without_decoder(self.whole, self.decoder_name),)
            parameters = inspect.signature(self.whole.forward).parameters
            self._head_input = "inputs_embeds" if "inputs_embeds" in parameters else "input_ids"
            self._check_alike()

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the weights that transformers loads."""
        return sum(parameter.numel() for parameter in self.whole.parameters()) * dtype.itemsize

    def matrices(self) -> dict[str, int]:
        """Those among them that are no embedding, by name, and the numbers in each."""
        modules = dict(self.whole.named_modules())
        embeddings = {
            module.weight for module in modules.values() if isinstance(module, nn.Embedding)
        }
        return {
            f"{path}.{name}": parameter.numel()
            for path, module in modules.items()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.dim() > 1 and parameter not in embeddings
        }

    def _check_alike(self) -> None:
        """See that tokens may be batched: nothing but attention mixes them, positions are counted
        one by one, and decoder and head are all there is."""
        device = self.whole.device

        def run(ids: tuple[int, ...], positions: tuple[int, ...] | None) -> Tensor:
            given = torch.tensor(ids, device=device).clamp(max=self.config.vocab_size - 1)
            places = None if positions is None else torch.tensor(positions, device=device)
            return self._decode(given, places, Local()).float()

        for token in (3, 5, 7):  # one that a router of experts does not waver about
            here = run((token, 11, 13, 17), (3, 1, 0, 2))
            there = run((19, 23, token, 29), (6, 5, 3, 4))
            if self._are_alike(there[2], here[0]):
                break
        else:
            raise UnsupportedError(
                "something else than attention sees other tokens, or a token's place in the batch "
                "(a recurrent state, a convolution, positions that are not those given)"
            )
        ids = (3, 5, 7, 11)
        own = run(ids, None)
        padding = getattr(self.hf_config.get_text_config(), "pad_token_id", None) or 0
        for first in (0, 1, padding + 1):
            if self._are_alike(run(ids, (first, first + 1, first + 2, first + 3)), own):
                self.first_position = first
                break
        else:
            raise UnsupportedError("it does not count positions from 0")
        logits = self.compute_logits(own.to(self.dtype)).float()
        whole = self.whole(
            input_ids=torch.tensor([ids], device=device), use_cache=False, attend=Local()
        )
        if not self._are_alike(logits, whole.logits[0].float()):
            raise UnsupportedError("its decoder and its head are not all that it computes")

    def _are_alike(self, a: Tensor, b: Tensor) -> bool:
        return bool((a - b).norm() <= _TOLERANCE.get(self.dtype, 1e-1) * b.norm())

    def _decode(self, input_ids: Tensor, positions: Tensor | None, attend: Attend) -> Tensor:
        output = self.whole.get_submodule(self.decoder_name)(
            input_ids=input_ids[None],
            position_ids=None if positions is None else positions[None],
            use_cache=False,
            attend=attend,
        )
        return output[0][0]

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        attend = Paged(self.specs, context)
        hidden_states = self._decode(input_ids, context.positions + self.first_position, attend)
        attend.finish()
        return hidden_states

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self._head[0](**{self._head_input: hidden_states[None]}, use_cache=False).logits[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.get_input_embeddings().weight.dtype

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        """What each call of attention needs of the KV cache."""
        return self.specs

    def max_length(self) -> int:
        """Longest sequence that the model is meant for, in tokens."""
        return max_length(self.hf_config) - self.first_position

    def rope_cache_key(self, num_prompt_tokens: int) -> int:
        return 0


def fallback_class(architecture: str) -> type[TransformersCausalLM] | None:
    """A class for an architecture that transformers has; None: it has none that writes text."""
    if architecture not in _architectures():
        return None
    import transformers

    cls = getattr(transformers, architecture)
    own = {"transformers_cls": cls, "hf_config_cls": cls.config_class}
    return type(architecture, (TransformersCausalLM,), own)


@functools.cache
def _architectures() -> frozenset[str]:
    """Of those that also see or hear, what reads and writes text is served."""
    from transformers.models.auto import modeling_auto as auto

    return frozenset(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()).union(
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    )


@functools.cache
def _verified() -> frozenset[str]:
    """Architectures that are known to give transformers' answers: see docs/models.md."""
    text = importlib.resources.files("axion.models").joinpath("catalog.json").read_text()
    rows = json.loads(text)["architectures"]
    return frozenset(name for name, row in rows.items() if row["equal"])
