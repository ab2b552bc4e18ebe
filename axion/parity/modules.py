"""Which module computes something else.

Both models run on the same prompt, and the inputs and outputs of their modules are compared call by
call. Modules correspond by the names of the parameters that they hold. Where they differ, the calls
that transformers made are walked from the outside in: the first whose input is still equal and
whose output is not has the fault, in a module that it calls or in what it computes itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from axion.layers.linear import PackedLinear
from axion.models.base import CausalLM
from axion.parity.calls import NOTHING, Call, Seen, observe, trace
from axion.parity.harness import BLOCK_SIZE, Harness, Run
from axion.parity.messages import Difference, Fault, Module
from axion.parity.reference import cache_name, forget, new_cache


class Comparison:
    """Compares two models over any number of prompts.

    Args:
        tolerance: on differences, relative to a tensor's largest number or to 1.
    """

    def __init__(self, reference: PreTrainedModel, model: CausalLM, tolerance: float) -> None:
        self.reference = reference
        self.model = model
        self.tolerance = tolerance
        self.modules: dict[str, Module] = {}
        self._pairs = pair(reference, model)
        self._layers = {
            path for path, own in self._pairs.items() if re.fullmatch(r"model\.layers\.\d+", own)
        }

    @torch.inference_mode()
    def run(self, prompt: list[int], index: int) -> Fault | None:
        """Compare on one prompt, the `index`-th; `modules` keeps where each was furthest apart.

        Returns:
            The first module that differs.
        """
        forget(self.reference)
        cache = new_cache(self.reference)
        with trace(self.reference) as root:
            caches = {cache_name(self.reference): cache}
            out = self.reference(torch.tensor([prompt]), use_cache=True, **caches)
        root.output = out.logits
        harness, sequence = self._new_harness(prompt), Run(prompt)
        self._prompt, self._index, self._sequence = prompt, index, sequence
        self._kv = [
            (getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers
        ]
        self._harness = harness
        with observe(self.model, self._pairs) as self._own:
            logits = self._logits(harness, sequence)
        self._own["", 0] = Seen(output=logits)
        self._compare_all(root)
        if self._is_equal(logits, root.output) is not False:
            return None
        return self._locate(root) or self._fault(root, "its output")

    def _new_harness(self, prompt: list[int]) -> Harness:
        return Harness(self.model, len(prompt) + BLOCK_SIZE)

    def _logits(self, harness: Harness, sequence: Run) -> Tensor:
        input_ids, context = harness.prepare([(sequence, len(sequence.prompt))])
        return self.model.compute_logits(self.model(input_ids, context))

    def _compare_all(self, call: Call) -> None:
        if call.key in self._own:
            own = self._own[call.key].output
            found = difference(own, call.output, self._index)
            last = self.modules.get(call.path)
            if last is None or found is not None:
                worst = last.difference if last is not None else None
                if worst is None or (found is not None and found.max_rel > worst.max_rel):
                    worst = found
                equal = worst is None or worst.max_rel <= self.tolerance
                self.modules[call.path] = Module(name=call.path, equal=equal, difference=worst)
        for child in call.children:
            self._compare_all(child)

    def _is_equal(self, own: Tensor | None, expected: Tensor | None) -> bool | None:
        """None: they cannot be compared."""
        found = difference(own, expected, self._index)
        return None if found is None else found.max_rel <= self.tolerance

    def _locate(self, call: Call) -> Fault | None:
        calls = call.children
        # A layer that gets what it should makes all before it right, in whatever form it came.
        sound = [
            i
            for i, child in enumerate(calls)
            if child.path in self._layers
            and self._is_equal(self._own.get(child.key, NOTHING).input, child.input)
        ]
        before: list[Call] = []
        for child in calls[sound[-1] if sound else 0 :]:
            own = self._own.get(child.key, NOTHING)
            if (
                self._is_equal(own.input, child.input) is False
                or self._is_equal(own.routing, child.routing) is False
            ):
                fault = self._fault(call, self._between(before, child), own.input, child.input)
                return self._unused(before) or fault
            equal = self._is_equal(own.output, child.output)
            if equal is False:
                return self._locate(child) or self._fault(child, "its output")
            if equal is None and (fault := self._locate(child)):
                return fault
            before.append(child)
        output = self._own.get(call.key, NOTHING).output
        if not calls or self._is_equal(output, call.output) is not False:
            return None
        return self._unused(before) or self._fault(call, self._between(before, None))

    def _between(self, before: list[Call], after: Call | None) -> str:
        seen = [_last_name(call.path) for call in before if call.key in self._own]
        parts = ["what it computes itself"]
        parts += [f"after {seen[-1]}"] if seen else []
        parts += [f"before {_last_name(after.path)}"] if after is not None else []
        return ", ".join(parts)

    def _fault(
        self,
        call: Call,
        reason: str,
        own: Tensor | None = None,
        expected: Tensor | None = None,
    ) -> Fault:
        """Args: own, expected: what differs; by default the output."""
        if own is None:
            own, expected = self._own.get(call.key, NOTHING).output, call.output
        return Fault(
            module=call.path or "compute_logits",
            reason=reason + self._about_attention(call),
            difference=difference(own, expected, self._index),
        )

    def _about_attention(self, call: Call) -> str:
        """Of an attention, whether its keys and values are as they should be."""
        path = self._pairs.get(call.path)
        module = self.model.get_submodule(path) if path else None
        layer_idx = getattr(module, "layer_idx", None)
        if not call.children or layer_idx is None or layer_idx >= len(self._kv):
            return ""
        length = len(self._prompt)
        cache = self._harness.kv_caches[layer_idx]
        table = self._sequence.block_tables[cache.group]
        differ = []
        for name, own, expected in zip(
            ("keys", "values"), (cache.k, cache.v), self._kv[layer_idx], strict=True
        ):
            if expected is None:  # another layer's, or a state of another kind
                return ""
            own = own[table].flatten(0, 1)[:length][-expected.shape[-2] :]
            equal = self._is_equal(own, expected)
            if equal is None:
                return ""
            differ += [] if equal else [name]
        if differ:
            return f"; its {' and '.join(differ)} differ, as they are in the cache"
        return "; its keys and values are equal: queries, scale, mask or window are not"

    def _unused(self, calls: list[Call]) -> Fault | None:
        """The first of modules that Axion has and does not call, if its parameters mean nothing."""
        for call in calls:
            path = self._pairs.get(call.path)
            if path is None or call.key in self._own:
                continue
            # What oneDNN has packed cannot be changed.
            module = self.model.get_submodule(path)
            parameters = [own for own in module.parameters() if not own.is_mkldnn]
            if parameters and self._means_nothing(parameters):
                return Fault(module=call.path, reason="Axion loads its parameters and uses none")
        return None

    def _means_nothing(self, parameters: list[Tensor]) -> bool:
        before = self._logits(self._new_harness(self._prompt), Run(self._prompt))
        kept = [parameter.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.mul_(-2).add_(1)
        after = self._logits(self._new_harness(self._prompt), Run(self._prompt))
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
        return torch.equal(before, after)


def _last_name(path: str) -> str:
    parts = path.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def pair(reference: nn.Module, model: CausalLM) -> dict[str, str]:
    """Path of each module of transformers to that of ours which holds the same parameters.

    A projection that is packed with others has the path that it would have apart. What has no
    parameters, or holds them in another form, goes by its own name in what it lies in.
    """
    own, theirs = checkpoint_names(model), renamed_names(reference, model)
    by_names: dict[frozenset[str], list[str]] = {}
    for path, names in own.items():
        if names:
            by_names.setdefault(names, []).append(path)
    pairs = {"": ""}
    for path, names in theirs.items():
        parent, _, name = path.rpartition(".")
        candidates = [p for p in by_names.get(names, ()) if p not in pairs.values()]
        candidates.sort(key=lambda p: p.rpartition(".")[2] != name)
        if parent in pairs:
            beside = f"{pairs[parent]}.{name}".removeprefix(".")
            candidates += [beside] if beside in own else []
        if path and candidates:
            pairs[path] = candidates[0]
    return pairs


def checkpoint_names(model: nn.Module) -> dict[str, frozenset[str]]:
    """Every module's path, and the names that a checkpoint has for the parameters in it."""
    found: dict[str, set[str]] = {}
    for path, module in model.named_modules():
        found.setdefault(path, set())
        if isinstance(module, PackedLinear):
            parent = path.rpartition(".")[0]
            names = {f"{parent}.{name}" for name in module.shard_views()}
            for shard in module.shards:
                found[f"{parent}.{shard}"] = set()
        else:
            names = {f"{path}.{name}".removeprefix(".") for name in _tensors(module)}
        for name in names:
            for owner in _owners(name):
                found.setdefault(owner, set()).add(name)
    return {path: frozenset(names) for path, names in found.items()}


def renamed_names(reference: nn.Module, model: CausalLM) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {path: set() for path, _ in reference.named_modules()}
    for path, module in reference.named_modules():
        for name in _tensors(module):
            full = f"{path}.{name}".removeprefix(".")
            renamed = full
            for pattern, replacement in model.renamed_tensors:
                renamed = re.sub(pattern, replacement, renamed)
            for owner in _owners(full):
                found[owner].add(renamed)
    return {path: frozenset(names) for path, names in found.items()}


def _owners(name: str) -> Iterator[str]:
    """Paths of the modules that a tensor lies in, from the inside out."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
    yield ""


def _tensors(module: nn.Module) -> Iterator[str]:
    yield from (name for name, _ in module.named_parameters(recurse=False))
    for name, _ in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name


def difference(own: Tensor | None, expected: Tensor | None, prompt: int) -> Difference | None:
    """Where two tensors are furthest apart; None where they cannot be compared.

    Args:
        own: `[num_tokens, ...]`.
        expected: the same with a batch of one, and perhaps heads before tokens, or folded.
    """
    expected = _aligned(own, expected)
    if expected is None:
        return None
    own, expected = own.float(), expected.float()
    apart = (own - expected).abs()
    apart[(own == expected) | (own.isnan() & expected.isnan())] = 0
    apart = apart.nan_to_num(nan=torch.inf)
    worst = int(apart.argmax())
    position, *index = (int(i) for i in torch.unravel_index(torch.tensor(worst), own.shape))
    scale = max(1.0, float(expected.nan_to_num().abs().max()))
    max_abs = float(apart.flatten()[worst])
    return Difference(
        prompt=prompt,
        position=position,
        index=tuple(index),
        axion=float(own.flatten()[worst]),
        transformers=float(expected.flatten()[worst]),
        max_abs=max_abs,
        max_rel=max_abs / scale,
    )


def _aligned(own: Tensor | None, expected: Tensor | None) -> Tensor | None:
    if own is None or expected is None or not own.numel() or own.numel() != expected.numel():
        return None
    num_tokens = len(own)
    if expected.dim() == 4 and expected.shape[1] != num_tokens == expected.shape[2]:
        expected = expected.transpose(1, 2)
    if num_tokens not in expected.shape[:2]:
        return None
    return expected.reshape(own.shape)
