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
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.attention import paged_attention
from axion.layers.context import ForwardContext, KVCacheSpec
from axion.layers.moe import Groups, pass_experts
from axion.models.base import CausalLM
from axion.models.fallback_layers import OwnLayers, own_layers, remove
from axion.quantization.method import QuantizationMethod
from axion.quantization.stored import FLOATS, StoredTensor

if TYPE_CHECKING:  # it takes seconds to import, and only the models in this file need it
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger("axion.models")

# What the functions here are called in transformers.
_OURS, _PROBING = "axion", "axion_probe"

_MAX_LAYERS = 2**10
_UNLIMITED = 2**24
_PROBE_TOKENS = 4
# How far a token's hidden state may be from itself in another batch, in parts of its norm.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
# Of a call of attention: what is about training, or said by the mask.
_HARMLESS = frozenset(
    """
    dropout position_ids output_attentions output_hidden_states use_cache sliding_window
    deterministic cache_position is_causal return_dict position_embeddings
    output_router_logits training past_key_values logits_to_keep
    """.split()  # noqa: SIM905
)
# Of config.json: how transformers is to compute, which may name code to fetch.
_NOT_THE_MODELS = frozenset(
    {
        *("quantization_config", "compression_config"),  # that is for `axion.quantization`
        *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
        *("experts_implementation", "_experts_implementation"),
        *("_experts_implementation_internal", "auto_map", "fusion_config", "name_or_path"),
        *("_name_or_path", "transformers_weights", "distributed_config"),
        *("output_attentions", "output_hidden_states", "output_router_logits"),
    }
)


class _UnsupportedError(Exception):
    """Why a class of transformers cannot be served."""


class Attend(Protocol):
    """One pass of the model, as its calls of attention see it."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        """Queries, keys and values `[num_tokens, num_heads, head_dim]` to
        `[num_tokens, num_heads, v_head_dim]`."""
        ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    attend: Attend | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for each layer: `[1, num_heads, num_tokens, head_dim]` each."""
    if attend is None:
        raise _UnsupportedError("it does not hand the arguments of a step down to its attention")
    for name, given in kwargs.items():
        if name not in _HARMLESS and given is not None:
            raise _UnsupportedError(f"its attention takes {name}, which is not supported")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise _UnsupportedError("its attention is not over the tokens of the step")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = attend(q, k, v, scale=scale, softcap=softcap, sinks=s_aux, mask=attention_mask)
    return out[None], None


@dataclass
class _Probe:
    """Finds the calls of attention, and computes nothing."""

    specs: list[KVCacheSpec] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, **_: Any) -> Tensor:
        if mask is None:
            raise _UnsupportedError("its attention is not causal")
        if not hasattr(mask, "is_causal"):
            raise _UnsupportedError("it makes attention masks of its own")
        if not mask.is_causal:
            raise _UnsupportedError("a token attends to others than those before it, or not to all")
        if q.shape[1] % k.shape[1] or k.shape[1] != v.shape[1]:
            raise _UnsupportedError("its attention has heads that do not fit each other")
        self.specs.append(KVCacheSpec(k.shape[1], k.shape[2], v.shape[2], window=mask.window))
        return q.new_zeros(*q.shape[:2], v.shape[-1])


def _probe_mask(
    mask_function: Callable[..., Tensor],
    q_length: int,
    kv_length: int,
    local_size: int | None = None,
    **_: Any,
) -> Tensor:
    """A mask that only says what it lets a token attend to, for `_Probe`."""
    mask = torch.empty(1, 1, q_length, kv_length)
    mask.is_causal = _is_causal(mask_function, local_size)  # type: ignore[attr-defined]
    mask.window = local_size  # type: ignore[attr-defined]
    return mask


def _is_causal(allows: Callable[..., Tensor], local_size: int | None) -> bool:
    """Whether a mask function of transformers lets a token attend to itself and those before it,
    the `local_size` last of them or all."""
    far = 2 * (local_size or 2048)
    with torch.device("cpu"):
        q = torch.tensor([0, 1, 2, 5, far // 2 - 1, far // 2, far // 2 + 1, far + 3])[:, None]
        back = torch.tensor([-3, -1, 0, 1, 2, 5, far // 2 - 1, far // 2, far // 2 + 1, far])
        kv = (q - back).clamp(min=0)
        expected = (kv <= q) & (kv > q - (local_size or far * 2))
        try:
            return torch.equal(allows(torch.tensor(0), torch.tensor(0), q, kv), expected)
        except (RuntimeError, IndexError):  # it wants to know of padding
            return False


class _Local:
    """Attention of each token to itself, but with all that queries and keys say."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        turned = (q.float().sum(-1, keepdim=True)).tanh() + 2
        repeats = q.shape[1] // v.shape[1]
        v = v.repeat_interleave(repeats, 1) + k.mean(-1, keepdim=True).repeat_interleave(repeats, 1)
        return (v * turned.to(v.dtype)).to(q.dtype)


class _Paged:
    """Attention over the paged KV cache."""

    def __init__(self, specs: list[KVCacheSpec], context: ForwardContext) -> None:
        self._specs = enumerate(specs)
        self._context = context

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        index, spec = next(self._specs, (0, None))
        assert spec is not None, "the model calls attention more often than when it was built"
        cache = self._context.kv_caches[index]
        out = paged_attention(
            q.to(cache.dtype),
            k.to(cache.dtype),
            v.to(cache.dtype),
            cache,
            self._context,
            scale=scale,
            window=spec.window,
            softcap=softcap,
            sinks=sinks,
        )
        return out.to(q.dtype)

    def finish(self) -> None:
        assert next(self._specs, None) is None, "the model calls attention less often than it did"


def _experts(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What transformers calls for the experts of a layer."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if isinstance(getattr(module, "down_proj", None), Tensor) or not module.has_gate:
        theirs = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
        return theirs(module, hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]

    def network(x: Tensor, groups: Groups) -> Tensor:
        out: Tensor = module.down_proj(module._apply_gate(module.gate_up_proj(x, groups)), groups)
        return out

    return pass_experts(hidden_states, top_k_weights, top_k_index, module.num_experts, network)


def _no_experts(module: nn.Module, hidden_states: Tensor, *_: Tensor) -> Tensor:
    """Experts, for `_Probe`: which tokens go where is not known on the meta device."""
    return torch.empty_like(hidden_states)


@functools.cache
def _register() -> None:
    """Tell transformers of the functions above."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.utils import logging

    AttentionInterface.register(_OURS, _attention)
    AttentionInterface.register(_PROBING, _attention)
    # None is registered for ours: transformers then makes no masks at all.
    AttentionMaskInterface.register(_PROBING, _probe_mask)
    ALL_EXPERTS_FUNCTIONS.register(_OURS, _experts)
    ALL_EXPERTS_FUNCTIONS.register(_PROBING, _no_experts)
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@dataclass
class _Config:
    """What the engine asks a model's configuration for."""

    vocab_size: int


class _HiddenStates(tuple[Tensor]):
    """A decoder's output: the hidden states, and None for whatever else is asked of it."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


class _Given(nn.Module):
    """In the decoder's place: hidden states in, and out."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        *_: Any,
        inputs_embeds: Tensor | None = None,
        **__: Any,
    ) -> _HiddenStates:
        hidden_states = input_ids if inputs_embeds is None else inputs_embeds
        assert hidden_states is not None
        return _HiddenStates((hidden_states,))


class TransformersCausalLM(CausalLM):
    """A class of transformers, as an architecture of ours.

    Attributes:
        transformers_cls: the class.
    """

    transformers_cls: ClassVar[type[PreTrainedModel]]
    renamed_tensors = ()

    def __init__(self, config: dict[str, Any]) -> None:
        """Build it on the meta device, and find its calls of attention.

        Args:
            config: config.json.

        Raises:
            ModelLoadError: it cannot be served; the message says why.
        """
        nn.Module.__init__(self)
        _register()
        self.hf_config = read_config(self.transformers_cls.config_class, config)
        self.specs: list[KVCacheSpec] = []
        self.first_position = 0
        with self._refusing(), torch.device("meta"), torch.inference_mode():
            if self.hf_config.is_encoder_decoder:
                raise _UnsupportedError("it reads what an encoder has made of its input")
            if getattr(self.hf_config.get_text_config(), "prefix_lm", False):
                raise _UnsupportedError(
                    "tokens of a prompt attend to those behind them (prefix_lm)"
                )
            self.whole = self._build()
            try:
                self._find_calls()
            except RuntimeError:
                kinds = set(getattr(self.hf_config.get_text_config(), "layer_types", None) or [""])
                if self.transformers_cls._is_stateful and not kinds <= _ATTENTION_LAYERS:
                    raise _UnsupportedError("it keeps a recurrent state") from None
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
        except _UnsupportedError as error:
            reason = str(error)
        except Exception as error:  # of any of some two hundred classes
            logger.debug("%s cannot be built", self.name, exc_info=True)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if _PROBING in reason:
                reason = "its attention does not go through transformers' interface"
        else:
            return
        raise ModelLoadError(
            f"Axion serves {self.name[:80]} by transformers' class, which cannot be done: {reason}."
        )

    def _build(self) -> PreTrainedModel:
        config = copy.deepcopy(self.hf_config)
        config._attn_implementation = _PROBING
        config._experts_implementation = _PROBING
        return self.transformers_cls(config).eval()

    def _find_calls(self) -> None:
        """Run the model once: what calls attention, with which shapes and masks, and in which of
        its modules are all the layers."""
        attend = _Probe()
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
            raise _UnsupportedError("its attention does not go through transformers' interface")
        whole = [(depth, name) for depth, name, calls in decoders if calls == len(attend.specs)]
        if not whole:
            raise _UnsupportedError("none of its modules goes from token ids to hidden states")
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
        self._check_stored(tensors)
        with self._refusing(), torch.inference_mode():
            self.whole, report = self._class_without_own().from_pretrained(
                None,
                config=self.hf_config,
                state_dict=_readers(tensors, dtype.itemsize, on_progress),
                dtype=dtype,
                attn_implementation=_PROBING,
                experts_implementation=_OURS,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            _check_report(report)
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
            self.whole.config._attn_implementation = _OURS
            self._head = self._without_decoder()
            parameters = inspect.signature(self.whole.forward).parameters
            self._head_input = "inputs_embeds" if "inputs_embeds" in parameters else "input_ids"
            self._check_alike()

    def _check_stored(self, tensors: Mapping[str, StoredTensor]) -> None:
        own = self.whole.state_dict()
        for name, tensor in tensors.items():
            # What is no number of a kind to compute with may be a table, and a quantized weight.
            is_table = name in own and not own[name].is_floating_point()
            if tensor.dtype not in FLOATS and not is_table:
                raise ModelLoadError(
                    f"{name[:200]!r} is stored as {tensor.dtype}, expected one of "
                    f"{', '.join(FLOATS)}."
                )

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

    def _without_decoder(self) -> tuple[nn.Module]:
        """The model's own way from hidden states to logits: itself, with nothing for a decoder.

        In a tuple, for it is not another part of this module.
        """
        head = module = copy.copy(self.whole)
        *path, last = self.decoder_name.split(".")
        for name in (*path, None):
            module._modules = dict(module._modules)
            if name is not None:
                module._modules[name] = copy.copy(module._modules[name])
                module = module._modules[name]
        module._modules[last] = _Given()
        return (head,)

    def _check_alike(self) -> None:
        """See that tokens may be batched: nothing but attention mixes them, positions are counted
        one by one, and decoder and head are all there is."""
        device = self.whole.device

        def run(ids: tuple[int, ...], positions: tuple[int, ...] | None) -> Tensor:
            given = torch.tensor(ids, device=device).clamp(max=self.config.vocab_size - 1)
            places = None if positions is None else torch.tensor(positions, device=device)
            return self._decode(given, places, _Local()).float()

        for token in (3, 5, 7):  # one that a router of experts does not waver about
            here = run((token, 11, 13, 17), (3, 1, 0, 2))
            there = run((19, 23, token, 29), (6, 5, 3, 4))
            if self._are_alike(there[2], here[0]):
                break
        else:
            raise _UnsupportedError(
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
            raise _UnsupportedError("it does not count positions from 0")
        logits = self.compute_logits(own.to(self.dtype)).float()
        whole = self.whole(
            input_ids=torch.tensor([ids], device=device), use_cache=False, attend=_Local()
        )
        if not self._are_alike(logits, whole.logits[0].float()):
            raise _UnsupportedError("its decoder and its head are not all that it computes")

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
        attend = _Paged(self.specs, context)
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
        """Longest sequence that the model is meant for, in tokens.

        Ropes that depend on the length are served as far as they do not.
        """
        config = self.hf_config.get_text_config()
        length = getattr(config, "max_position_embeddings", None) or _UNLIMITED
        for rope in _ropes(config):
            original = rope.get("original_max_position_embeddings") or length
            if rope.get("rope_type") == "longrope":
                length = min(length, original)
            elif rope.get("rope_type") == "yarn":
                length = max(length, int(original * (rope.get("factor") or 1)))
        return length - self.first_position

    def rope_cache_key(self, num_prompt_tokens: int) -> int:
        return 0


def fallback_class(architecture: str) -> type[TransformersCausalLM] | None:
    """A class for an architecture that transformers has; None: it has none that writes text."""
    if architecture not in _architectures():
        return None
    import transformers

    cls = getattr(transformers, architecture)
    return type(architecture, (TransformersCausalLM,), {"transformers_cls": cls})


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


def read_config(cls: type[PreTrainedConfig], config: dict[str, Any]) -> PreTrainedConfig:
    """config.json, read by transformers' class for it.

    Raises:
        ModelLoadError: config.json is not what the class takes.
    """
    try:
        known = cls.from_dict(_the_models_own(config))
        num_layers = known.get_text_config().num_hidden_layers
    except Exception as error:  # of any of some two hundred classes
        reason = " ".join(str(error).split())[:300]
        raise ModelLoadError(f"config.json does not suit {cls.__name__}: {reason}.") from None
    if not 0 < num_layers <= _MAX_LAYERS:
        raise ModelLoadError(
            f"config.json: {num_layers} layers, expected at least 1 and at most {_MAX_LAYERS}."
        )
    return known


def _the_models_own(value: Any) -> Any:
    """config.json without what says how transformers is to compute: it may name code to fetch."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:  # JSON has no infinity
            return float(value["__float__"])
        return {k: _the_models_own(v) for k, v in value.items() if k not in _NOT_THE_MODELS}
    if isinstance(value, list):
        return [_the_models_own(entry) for entry in value]
    return value


def _ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """`rope_parameters`, of which there may be one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [value for value in rope.values() if isinstance(value, dict)]
    return kinds or [rope]


@dataclass
class _Reader:
    """A stored tensor, read when transformers asks for all of it."""

    tensor: StoredTensor
    on_read: Callable[[StoredTensor], None]

    def __getitem__(self, index: Any) -> Tensor:
        value = self.tensor.read()
        self.on_read(self.tensor)
        return value


def _readers(
    tensors: Mapping[str, StoredTensor],
    itemsize: int,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, _Reader]:
    sizes = {name: math.prod(tensor.shape) * itemsize for name, tensor in tensors.items()}
    total, done = sum(sizes.values()), 0

    def on_read(tensor: StoredTensor) -> None:
        nonlocal done
        done += sizes[tensor.name]
        if on_progress is not None:
            on_progress(done, total)

    return {name: _Reader(tensor, on_read) for name, tensor in tensors.items()}


def _check_report(report: dict[str, Any]) -> None:
    """Raises: ModelLoadError: transformers missed a tensor, or found one too many."""
    faults = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    faults += [
        f"{name[:200]!r} is not part of the architecture"
        for name in sorted(report["unexpected_keys"])
    ]
    faults += [
        f"{name} has shape {list(stored)}, expected {list(expected)}"
        for name, stored, expected in sorted(report["mismatched_keys"])
    ]
    faults += [str(error)[:300] for error in report.get("error_msgs", ())]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ModelLoadError(
            f"The weights are not what config.json describes: {'; '.join(faults[:5])}{more}."
        )
