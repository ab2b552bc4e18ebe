"""Which architectures Axion serves, measured: `python -m tests.parity.catalog` (some ten minutes).

Each architecture of transformers that writes text, and each of Axion's own, is made small, saved
with every parameter random, loaded, and compared with transformers. One that transformers has not
is compared with the class of it that computes the same (`older_names.py`), and one that it cannot
build here, for what it sees with, by its text model alone. What comes out is written to
`axion/models/catalog.json`, from which the router knows what the fallback serves, and to
`docs/models.md`.
"""

from __future__ import annotations

import ast
import json
import multiprocessing
import resource
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
import typer
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from axion.engine.loader import load_model
from axion.errors import AxionError
from axion.models.base import CausalLM
from axion.models.registry import load_model_class, model_classes
from axion.models.transformers_fallback import TransformersCausalLM
from axion.parity import tiny
from axion.parity.harness import Harness, Run, alone, chunked, mixed
from tests.parity.checkpoints import store_inside
from tests.parity.older_names import OLDER_NAMES, store_as

ROOT = Path(__file__).parent.parent.parent
CATALOG = ROOT / "axion" / "models" / "catalog.json"
DOCUMENT = ROOT / "docs" / "models.md"

NUM_TOKENS = 32
TOLERANCE = 1e-4
TIMEOUT_S = 300
MEMORY_BYTES = 10 * 2**30


class Row(NamedTuple):
    """What was measured of an architecture.

    Attributes:
        way: `native`, `fallback`, `refused`, or `untested`: no small model of it could be made.
        equal: logits and greedy tokens are transformers'.
        reason: why it is refused, untested, or not equal.
    """

    way: str
    equal: bool = False
    reason: str = ""


TEXT = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
SEEING = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()) - TEXT
_MODEL_TYPES = [
    *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items(),
    *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items(),
]


def architectures() -> list[str]:
    return sorted({*TEXT, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(), *model_classes()})


def small_config(architecture: str) -> PreTrainedConfig:
    if (older := OLDER_NAMES.get(architecture)) is not None:
        return tiny.shrink(tiny.base_config(older.sibling), **older.changes)
    return tiny.small_config(architecture)


def measure(architecture: str) -> Row:
    is_native = architecture in model_classes()
    if architecture not in OLDER_NAMES and not hasattr(transformers, architecture):
        return Row("native", reason="transformers itself has no class that computes the same")
    try:
        config = small_config(architecture)
    except Exception as error:  # whatever transformers says of a configuration
        return _refusal(tiny.base_config(architecture)) or Row("untested", reason=_named(error))
    if (refused := _refusal(config)) and "Error: " not in refused.reason:
        return refused
    inside = ""
    try:
        try:
            reference = tiny.build(config)
        except ImportError:  # what it sees with is another package's; its text model is not
            inside, config = architecture, config.get_text_config()
            config.architectures = None
            reference = tiny.build(config)
        reference(input_ids=torch.tensor([[5, 7, 11]]), use_cache=False)
    except Exception as error:  # of any class of transformers
        reason = f"transformers itself does not run it on text: {_named(error)}"
        return Row("native" if is_native else "untested", reason=reason)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        if inside:
            store_inside(inside, Path(folder))
        if architecture in OLDER_NAMES:
            store_as(architecture, Path(folder))
        try:
            model = load_model(Path(folder), device=torch.device("cpu"), dtype="float32")
        except AxionError as error:
            return _refused(error)
        is_native = not isinstance(model, TransformersCausalLM)
        return Row("native" if is_native else "fallback", **_compare(model, reference))


def _refusal(config: PreTrainedConfig) -> Row | None:
    """Why the fallback refuses it before its weights are read, if it does."""
    fields = json.loads(config.to_json_string(use_diff=False))
    cls = load_model_class(fields)
    if not issubclass(cls, TransformersCausalLM):
        return None
    try:
        cls(fields)
    except AxionError as error:
        return _refused(error)
    return None


def _refused(error: AxionError) -> Row:
    return Row("refused", reason=error.message.partition("cannot be done: ")[2] or error.message)


def _compare(model: CausalLM, reference: PreTrainedModel) -> dict[str, Any]:
    longest = model.max_length() - NUM_TOKENS
    prompts = [prompt[:longest] for prompt in tiny.random_prompts()]
    expected: list[torch.Tensor] = []
    for way in (alone, mixed, chunked):
        runs = way(Harness(model), prompts, NUM_TOKENS)
        expected = expected or [next_logits(reference, run) for run in runs]
        for run, logits in zip(runs, expected, strict=True):
            difference = (torch.stack(run.logits) - logits).abs().max().item()
            if not difference <= TOLERANCE * max(1.0, logits.abs().max().item()):
                return {"reason": f"{way.__name__}: logits differ by {difference:.1e}"}
            if run.output != logits.argmax(-1).tolist():
                return {"reason": f"{way.__name__}: tokens differ"}
    return {"equal": True}


@torch.inference_mode()
def next_logits(model: PreTrainedModel, run: Run) -> torch.Tensor:
    """What transformers predicts at each generated token, without a cache.

    Where its best is each time the token that was generated, it generates the same.
    """
    logits = model(input_ids=torch.tensor([run.token_ids[:-1]]), use_cache=False).logits[0]
    return logits[len(run.prompt) - 1 :]


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def measure_apart(architecture: str) -> Row:
    """The same in a process of its own, which may crash, fill its memory or not end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.parity.catalog"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(architecture, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_S):
            return Row("untested", reason=f"not done in {TIMEOUT_S} s")
        return ours.recv()
    except EOFError:
        process.join()
        return Row("untested", reason=f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _in_child(architecture: str, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    try:
        row = measure(architecture)
    except Exception as error:  # of a forward pass
        row = Row("untested", reason=_named(error))
    connection.send(row)


def vllm_architectures(site_packages: Path) -> dict[str, Any]:
    """Names in vLLM's registry that generate text from text, and its version."""
    tree = ast.parse((site_packages / "vllm/model_executor/models/registry.py").read_text())
    tables = {
        ast.unparse(node.targets[0]): {key.value for key in node.value.keys if key is not None}
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    text = tables["_TEXT_GENERATION_MODELS"] | {
        name
        for name in tables["_TRANSFORMERS_SUPPORTED_MODELS"]
        if not name.endswith("ForConditionalGeneration")
    }
    [info] = site_packages.glob("vllm-*.dist-info")
    return {
        "version": info.name.removeprefix("vllm-").removesuffix(".dist-info"),
        "text": len(text),
        "multimodal": len(tables["_MULTIMODAL_MODELS"]),
    }


def render(catalog: dict[str, Any]) -> str:
    """`docs/models.md`."""
    rows = {name: Row(**row) for name, row in catalog["architectures"].items()}
    served = {name: row for name, row in rows.items() if row.way in ("native", "fallback")}
    also_seeing = {name: row for name, row in served.items() if name in SEEING}
    text = {name: row for name, row in served.items() if name not in SEEING}
    others = {name: row for name, row in rows.items() if name not in served}
    vllm = catalog["vllm"]
    return f"""# Models

Which architectures (`architectures` in a model's `config.json`) Axion's own engine serves. This
page is written by `python -m tests.parity.catalog`. Of each architecture that transformers
{catalog["transformers"]} has for generating text it makes a small model, with every parameter
random, and compares {NUM_TOKENS} greedy tokens and their logits with transformers' eager attention
without a cache, in float32, within {TOLERANCE} of 1 or of the largest logit: alone, in a mixed
batch, and in chunks beside generation. Names that transformers has no class for, whose
repositories bring Python, are compared with the class of it that computes the same. Besides,
[tests/parity](../tests/parity/) has a row for every field of a native architecture that changes
what it computes.

- **native**: a class of Axion's own, one file in `axion/models/`.
- **fallback**: transformers' own class, with Axion's paged attention in place of its own: the same
  batching, chunked prefill and prefix cache. Its linear layers and experts are Axion's, quantized
  as any ([docs/quantization.md](quantization.md)); nothing is fused, so it is slower than a native
  class would be.
- **refused**: it cannot be served by either; loading says why, before the weights are read where
  that can be known.

| | verified equal | vLLM {vllm["version"]} lists |
|---|---|---|
| generate text | {_count(text)} | {vllm["text"]} |
| text of models that also see or hear | {_count(also_seeing)} | {vllm["multimodal"]}, with images |

Both count names, some of them several names of one class. vLLM also tries classes of transformers
that its registry does not list. The router gives Axion's own engine what is verified here;
`axion.LLM` tries whatever transformers has, with a warning in the log.

## Limits of the fallback

- Ropes that depend on the length: `longrope` is served up to the original context (one set of
  factors), `dynamic` up to `max_position_embeddings`, as long as the two agree with plain.
- Latent attention (MLA) is cached expanded.
- Layers that keep a recurrent state are native or not served. BERT and its kin need `is_decoder`
  in `config.json`.
- Custom code in a repository (`auto_map`) is run only with `TRUST_REMOTE_CODE=true`
  ([docs/configuration.md](configuration.md#the-models-files)), and only for an architecture that is
  neither here nor in transformers. The class is served as transformers' are: its attention must go
  through transformers' interface. Nothing in these tables has been measured of such a class.

## Where a native class differs from transformers

- Phi-3.5-MoE: beyond the original context its rope has the long factors, as in its authors' code
  and in vLLM. transformers takes the short ones at every length.
- Falcon with ALiBi: the bias is added once and not rounded. transformers rounds it to bfloat16, and
  its eager attention adds it twice.
- MPT: `alibi_bias_max` is honoured. transformers takes 8 whatever it says.

## Text

{_table(text)}

## Text of models that also see or hear

Images and sounds are refused, with a 400. Natively, which class computes the text is found from
`text_config`; where that names a model without a class of its own, transformers' class is taken for
the whole. The weights for images and sounds are not read natively; the fallback loads them.

{_table(also_seeing)}

## Not served

| architecture | why |
|---|---|
{_reasons(others)}
"""


def _count(rows: dict[str, Row]) -> str:
    ways = Counter(row.way for row in rows.values() if row.equal)
    return f"{sum(ways.values())} ({ways['native']} native, {ways['fallback']} fallback)"


def _table(rows: dict[str, Row]) -> str:
    lines = ["| architecture | served by | equal | model type |", "|---|---|---|---|"]
    for name, row in rows.items():
        way = row.way
        if way == "native":
            way = f"[native](../{_file(model_classes()[name])})"
        types = ", ".join(
            f"[{kind}](https://huggingface.co/docs/transformers/model_doc/{kind})"
            for kind, architecture in _MODEL_TYPES
            if architecture == name
        )
        lines.append(f"| `{name}` | {way} | {'yes' if row.equal else row.reason} | {types} |")
    return "\n".join(lines)


def _reasons(rows: dict[str, Row]) -> str:
    return "\n".join(f"| `{name}` | {row.reason.replace('|', ' ')} |" for name, row in rows.items())


def _file(cls: type) -> str:
    return f"{cls.__module__.replace('.', '/')}.py"


def main(
    names: list[str] = typer.Argument(None, help="these only; default: all"),
    vllm: Path = typer.Option(None, help="site-packages with vLLM, whose registry is counted"),
    jobs: int = typer.Option(2, help="how many at a time"),
) -> None:
    catalog = json.loads(CATALOG.read_text()) if CATALOG.exists() else {}
    todo = names or architectures()
    with ThreadPoolExecutor(jobs) as threads:
        rows = dict(zip(todo, _shown(todo, threads.map(measure_apart, todo)), strict=True))
    if names:
        rows = {name: Row(**row) for name, row in catalog["architectures"].items()} | rows
    catalog = {
        "transformers": version("transformers"),
        "vllm": vllm_architectures(vllm) if vllm else catalog["vllm"],
        "architectures": {name: rows[name]._asdict() for name in sorted(rows)},
    }
    CATALOG.write_text(json.dumps(catalog, indent=1) + "\n")
    DOCUMENT.write_text(render(catalog))


def _shown(names: list[str], rows: Iterable[Row]) -> Iterator[Row]:
    for name, row in zip(names, rows, strict=True):
        typer.echo(f"{name:44} {row.way:9} {'equal' if row.equal else row.reason}")
        yield row


if __name__ == "__main__":
    typer.run(main)
