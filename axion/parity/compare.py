"""`axion parity`: one model by both, module by module and then token by token."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from axion.engine.kv_cache import free_memory
from axion.engine.loader import load_model
from axion.errors import InvalidRequestError, ModelLoadError
from axion.hub.config import load_config
from axion.hub.snapshot import weight_files
from axion.models.base import CausalLM
from axion.models.registry import load_model_class
from axion.models.transformers_fallback import TransformersCausalLM
from axion.parity import tiny
from axion.parity.harness import BLOCK_SIZE, WAYS, Harness, Run
from axion.parity.messages import CompareRequest, Fault, Generation, Report
from axion.parity.modules import Comparison, checkpoint_names, renamed_names
from axion.parity.reference import Generated, generate
from axion.text.tokenizer import load_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOLERANCES = {"float32": 1e-4, "bfloat16": 6e-2, "float16": 1e-2}
_PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Die Würde des Menschen ist unantastbar. 生きることは学ぶことである。 Once upon a time, in a "
    "village by the sea, there lived an old clockmaker who could not tell the time. Every morning "
    "he opened his shop, wound each of his clocks, and asked the first person who came in",
)


def compare(request: CompareRequest) -> Report:
    """Compare a model's every module, and 32 greedy tokens however they are computed.

    Raises:
        AxionError: the two cannot be compared; says why.
    """
    if not request.tiny:
        return _compare(request, Path(request.path))
    if request.prompts:
        raise InvalidRequestError(
            "A tiny model has no tokenizer: --prompt does not go with --tiny."
        )
    with TemporaryDirectory(prefix="axion-parity-") as folder:
        _save_tiny(request, Path(folder))
        return _compare(request, Path(folder))


def _save_tiny(request: CompareRequest, folder: Path) -> None:
    if request.path is None:
        config, architectures = tiny.base_config(request.model), None
    else:
        architectures = load_config(Path(request.path))["architectures"]
        config = tiny.read_config(Path(request.path))
    load_model_class(config.to_dict() | {"architectures": architectures or config.architectures})
    small = tiny.shrink(config) if request.path else tiny.small_config(request.model)
    try:
        model = tiny.build(small)
    except ImportError as error:  # what a model sees with may be another package's
        raise ModelLoadError(f"transformers cannot build the model here: {error}") from None
    model.save_pretrained(folder)
    if architectures is not None:  # by which Axion finds its class
        text = (folder / "config.json").read_text()
        own = f'"architectures": [\n    "{type(model).__name__}"\n  ]'
        assert own in text
        named = ", ".join(f'"{name}"' for name in architectures)
        (folder / "config.json").write_text(text.replace(own, f'"architectures": [{named}]'))


def _compare(request: CompareRequest, folder: Path) -> Report:
    dtype = _DTYPES[request.dtype]
    _check_memory(folder, dtype)
    config = load_config(folder)
    reference = _load_reference(folder, dtype)
    tolerance = request.tolerance or _TOLERANCES[request.dtype]
    report = {
        "model": request.model,
        "architecture": config["architectures"][0],
        "reference": type(reference).__name__,
        "dtype": request.dtype,
        "tolerance": tolerance,
    }
    try:
        model = load_model(folder, device=torch.device("cpu"), dtype=dtype)
    except ModelLoadError:
        fault = _structural_fault(reference, config)
        if fault is None:
            raise
        return Report(**report, prompt_lengths=(), modules=(), fault=fault, generations=())
    prompts, notes = _prompts(request, folder, model)
    comparison = Comparison(reference, model, tolerance)
    faults = [comparison.run(prompt, i) for i, prompt in enumerate(prompts)]
    fault = next((fault for fault in faults if fault is not None), None)
    # Tokens that follow from wrong numbers say nothing more.
    generations = _generations(request, reference, model, prompts, tolerance) if not fault else []
    return Report(
        **report,
        prompt_lengths=tuple(len(prompt) for prompt in prompts),
        modules=tuple(comparison.modules.values()),
        fault=fault,
        generations=tuple(generations),
        notes=tuple(notes),
    )


def _check_memory(folder: Path, dtype: torch.dtype) -> None:
    # Stored in two bytes a number, as almost all are; read by both.
    need = sum(file.stat().st_size for file in weight_files(folder)) // 2 * dtype.itemsize * 2
    free = free_memory(torch.device("cpu"))
    if need > free:
        raise ModelLoadError(
            f"The model by transformers and by Axion needs about {need / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free. Compare a small model of the architecture: --tiny."
        )


def _load_reference(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    model_class = tiny.model_class(tiny.read_config(folder))
    try:
        model = model_class.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", use_safetensors=True
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise ModelLoadError(f"transformers cannot load the model: {error}") from None
    return model.eval()


def _structural_fault(reference: PreTrainedModel, config: dict[str, Any]) -> Fault | None:
    """The first module that only one of the two has, in the order of transformers'."""
    model_class = load_model_class(config)
    if issubclass(model_class, TransformersCausalLM):  # both have the same modules
        return None
    with torch.device("meta"):
        model = model_class(model_class.config_cls.from_dict(config))
    own, theirs = checkpoint_names(model)[""], renamed_names(reference, model)
    ignored = "|".join(model.ignored_tensors)
    for path, names in theirs.items():
        children = [p for p in theirs if p.startswith(f"{path}.")] if path else list(theirs)[1:]
        rest = names.difference(*(theirs[child] for child in children))
        lacking = [name for name in sorted(rest - own) if not re.fullmatch(ignored, name)]
        if lacking and ".experts" not in path:
            return Fault(module=path, reason=f"Axion has no {lacking[0]}")
    if left := sorted(own - theirs[""]):
        return Fault(module=left[0].rpartition(".")[0], reason=f"transformers has no {left[0]}")
    return None


def _prompts(
    request: CompareRequest, folder: Path, model: CausalLM
) -> tuple[list[list[int]], list[str]]:
    """Token ids, and what they do not reach."""
    if request.tiny:
        return tiny.random_prompts(), []
    tokenizer = load_tokenizer(folder)
    texts = request.prompts or _PROMPTS
    prompts = [tokenizer.encode(text, add_special_tokens=True) for text in texts]
    needed = _longest_bound(model) + BLOCK_SIZE
    longest = max(prompts, key=len)
    notes = []
    if needed > request.max_prompt_tokens:
        notes.append(
            f"No prompt is longer than {request.max_prompt_tokens} tokens, which leaves what "
            f"happens beyond a window or an original context unseen. --max-prompt-tokens {needed} "
            "reaches it, and --tiny at once."
        )
    elif not request.prompts and needed > len(longest):
        prompts.append((longest * needed)[:needed])
    return sorted(prompts, key=len), notes


def _longest_bound(model: CausalLM) -> int:
    """Tokens after which a window begins to hide some, or a scaled rope to matter; 0: none."""
    if isinstance(model, TransformersCausalLM):  # its ropes are transformers' own
        return max(spec.window or 0 for spec in model.kv_cache_specs())
    config, layers = model.config, range(model.config.num_hidden_layers)
    windows = [config.window(i) or 0 for i in layers]
    ropes = [config.rope(i) for i in layers if config.rope(i).rope_type != "default"]
    return max(windows + [rope.original_max_position_embeddings for rope in ropes])


def _generations(
    request: CompareRequest,
    reference: PreTrainedModel,
    model: CausalLM,
    prompts: list[list[int]],
    tolerance: float,
) -> list[Generation]:
    num_tokens = request.num_tokens
    first_position = model.first_position if isinstance(model, TransformersCausalLM) else 0
    answers = [
        generate(reference, prompt, num_tokens, first_position=first_position) for prompt in prompts
    ]
    # What is computed first, and what is computed again or over it, in whole blocks.
    room = 2 * sum(len(prompt) + num_tokens + BLOCK_SIZE for prompt in prompts)
    generations = []
    for way, run_all in WAYS.items():
        runs = run_all(Harness(model, room), prompts, num_tokens)
        reasons = [
            reason
            for run, answer in zip(runs, answers, strict=True)
            if (reason := _first_wrong_token(run, answer, tolerance))
        ]
        generations.append(
            Generation(way=way, equal=not reasons, reason=reasons[0] if reasons else "")
        )
    return generations


def _first_wrong_token(run: Run, answer: Generated, tolerance: float) -> str:
    """Empty if there is none before a tie: two tokens that rounding may let change places."""
    for i, (own, expected) in enumerate(zip(run.logits, answer.logits, strict=True)):
        scale = max(1.0, float(expected.abs().max()))
        apart = float((own.float() - expected.float()).abs().max())
        if not apart <= tolerance * scale:
            return f"prompt of {len(run.prompt)} tokens, token {i + 1}: logits {apart:.2g} apart"
        if run.output[i] != answer.token_ids[i]:
            break
    return ""
