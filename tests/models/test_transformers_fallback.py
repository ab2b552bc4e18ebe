from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from axion.engine import loader
from axion.engine.assembly import load_engine
from axion.engine.checkpoint import open_checkpoint
from axion.engine.loader import load_model
from axion.engine.messages import AddRequest
from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.models.transformers_fallback import TransformersCausalLM, fallback_class
from axion.parity import tiny
from axion.parity.harness import WAYS, Harness, Run, chunked
from axion.quantization.registry import quantization_method
from axion.types import EngineConfig, SamplingParams
from tests.parity.catalog import next_logits, small_config

CPU = torch.device("cpu")
NUM_TOKENS = 12
# On both sides of the window.
PROMPTS = [[(31 * i * i + 7 * i + n) % 190 for i in range(n)] for n in (7, 41)]

# It has no class of Axion's own.
ARCHITECTURE = "Jais2ForCausalLM"

SHAPES = {
    "SeedOssForCausalLM": "grouped heads with biases",
    "Exaone4ForCausalLM": "windows, and full attention without rope",
    "MiMoV2FlashForCausalLM": "sinks, values of another size than keys, experts",
    "JetMoeForCausalLM": "experts that cannot be run without numbers",
    "Gemma3nForCausalLM": "layers that share keys and values",
    "DiffLlamaForCausalLM": "two calls of attention a layer",
    "YoutuForCausalLM": "latent attention",
    "PaliGemmaForConditionalGeneration": "the text part of a model that sees",
}


def save(architecture: str, path: Path) -> PreTrainedModel:
    model = tiny.build(small_config(architecture))
    model.save_pretrained(path)
    return model


def load(path: Path) -> CausalLM:
    return load_model(path, device=CPU, dtype="float32")


def load_fallback(path: Path) -> TransformersCausalLM:
    """Whether or not there is a class of Axion's own."""
    checkpoint = open_checkpoint(path)
    [architecture] = checkpoint.config["architectures"]
    cls = fallback_class(architecture)
    assert cls is not None
    method = quantization_method(checkpoint.config)
    return loader.load_fallback(cls, checkpoint, method, CPU, torch.float32)


def assert_answers_of(reference: PreTrainedModel, runs: list[Run]) -> None:
    for run in runs:
        expected = next_logits(reference, run)
        assert run.output == expected.argmax(-1).tolist()
        assert (torch.stack(run.logits) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("architecture", SHAPES, ids=lambda name: f"{name}: {SHAPES[name]}")
def test_its_answers_are_transformers_own_however_they_are_computed(
    architecture: str, tmp_path: Path
) -> None:
    reference = save(architecture, tmp_path)
    model = load_fallback(tmp_path)
    for way in WAYS.values():
        assert_answers_of(reference, way(Harness(model), PROMPTS, NUM_TOKENS))


def test_a_score_cap_is_honoured(tmp_path: Path) -> None:
    config = small_config("Gemma2ForCausalLM")
    config.attn_logit_softcapping = 2.0
    reference = tiny.build(config)
    reference.save_pretrained(tmp_path)
    model = load_fallback(tmp_path)
    assert_answers_of(reference, chunked(Harness(model), PROMPTS, NUM_TOKENS))


def test_a_head_may_read_more_of_its_decoder_than_hidden_states(tmp_path: Path) -> None:
    config = small_config("ChameleonForConditionalGeneration")
    config.vocabulary_map = {"<image>": 5, "IMGIMGBBZ": 7}  # the latter is not to be written
    reference = tiny.build(config)
    reference.save_pretrained(tmp_path)
    runs = chunked(Harness(load_fallback(tmp_path)), PROMPTS, NUM_TOKENS)
    assert_answers_of(reference, runs)
    assert all(logits[7] == torch.finfo(torch.float32).min for logits in runs[0].logits)


def test_two_threads_do_not_see_each_other_s_steps(small: Path) -> None:
    model = load(small)
    [expected] = chunked(Harness(model), [PROMPTS[0]], 40)
    with ThreadPoolExecutor(2) as threads:
        runs = list(threads.map(lambda _: chunked(Harness(model), [PROMPTS[0]], 40), range(4)))
    assert [run.output for [run] in runs] == [expected.output] * 4


def test_the_engine_serves_it(small: Path) -> None:
    core = load_engine(
        EngineConfig(
            model_path=str(small),
            device="cpu",
            dtype="float32",
            kv_cache_bytes=2**20,
            max_model_len=64,
            max_num_batched_tokens=16,
            max_num_seqs=2,
            block_size=8,
        )
    )
    assert core.info.architecture == ARCHITECTURE
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    tokens: dict[str, list[int]] = {"a": [], "b": []}
    for name, prompt in zip(tokens, PROMPTS, strict=True):
        assert core.add(AddRequest(name, prompt, params)) is None
    while core.has_unfinished:
        for output in core.step():
            tokens[output.request_id] += output.token_ids
    runs = chunked(Harness(core.model), PROMPTS, NUM_TOKENS)
    assert list(tokens.values()) == [run.output for run in runs]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small")
    save(ARCHITECTURE, path)
    return path


@pytest.fixture
def small(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refusal(architecture: str, **changes: Any) -> str:
    """Of a small model, before its weights are read."""
    cls = fallback_class(architecture)
    assert cls is not None
    config = json.loads(small_config(architecture).to_json_string(use_diff=False))
    with pytest.raises(ModelLoadError) as caught:
        cls(config | changes)
    assert architecture in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("BltForCausalLM", "not one stack"),
        ("BloomForCausalLM", "does not go through transformers' interface"),
        ("xLSTMForCausalLM", "recurrent state"),
        ("DeepseekV32ForCausalLM", "indices"),
        ("DogeForCausalLM", "masks of its own"),
        ("Llama4ForCausalLM", "attends to others"),
        ("StableLmForCausalLM", "does not hand the arguments"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_weights_are_read(
    architecture: str, reason: str
) -> None:
    assert reason in refusal(architecture)


def test_a_model_that_looks_ahead_is_refused() -> None:
    assert "attends to others" in refusal("BertLMHeadModel", is_decoder=False)


def test_prompts_that_look_ahead_are_refused() -> None:
    assert "prefix_lm" in refusal("HrmTextForCausalLM", prefix_lm=True)


def test_the_decoder_of_an_encoder_is_refused() -> None:
    assert "encoder" in refusal("BartForCausalLM", is_encoder_decoder=True)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("Lfm2ForCausalLM", "something else than attention sees other tokens"),
        ("InklingForCausalLM", "position_bias"),
        ("BartForCausalLM", "something else than attention sees other tokens"),
    ],
)
def test_what_only_numbers_show_is_refused_too(
    architecture: str, reason: str, tmp_path: Path
) -> None:
    save(architecture, tmp_path)
    with pytest.raises(ModelLoadError, match=reason):
        load_fallback(tmp_path)


def change_config(path: Path, **fields: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_weights(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


V_PROJ = "model.layers.1.self_attn.v_proj.weight"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: t.pop(V_PROJ), f"{V_PROJ} is missing"),
        (lambda t: t.update(more=t[V_PROJ].clone()), "'more' is not part of the architecture"),
        (lambda t: t.update({V_PROJ: t[V_PROJ][1:].clone()}), f"{V_PROJ} has shape .* expected"),
        (lambda t: t.update({V_PROJ: t[V_PROJ].to(torch.int8)}), f"{V_PROJ} is stored as I8"),
    ],
)
def test_weights_are_strictly_those_of_the_config(
    change: Callable[[dict[str, Tensor]], Any], fault: str, small: Path
) -> None:
    change_weights(small, change)
    with pytest.raises(ModelLoadError, match=fault):
        load(small)


def test_experts_are_read_as_checkpoints_hold_them(tmp_path: Path) -> None:
    save("Dots1ForCausalLM", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    name = next(name for name in stored if ".experts.0." in name)
    load_fallback(tmp_path)
    change_weights(tmp_path, lambda t: t.pop(name))
    with pytest.raises(ModelLoadError, match="experts"):
        load_fallback(tmp_path)


def test_too_large_a_model_is_refused_before_its_weights_are_read(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "free_memory", lambda device: 2**10)
    monkeypatch.setattr(TransformersCausalLM, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ModelLoadError, match=r"The weights need .* GiB as float32"):
        load(small)


def test_progress_ends_at_the_total_and_the_number_format_is_as_asked(small: Path) -> None:
    calls: list[tuple[int, int]] = []
    model = load_model(
        small, device=CPU, dtype="bfloat16", on_progress=lambda *call: calls.append(call)
    )
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1] == sum(p.nbytes for p in model.parameters())
    assert model.dtype == torch.bfloat16
    assert [run.output for run in chunked(Harness(model), PROMPTS, 3)]


def test_config_json_cannot_name_code_to_compute_with(small: Path) -> None:
    change_config(
        small,
        attn_implementation="somebody/kernel",
        _attn_implementation="somebody/kernel",
        experts_implementation="somebody/kernel",
        auto_map={"AutoModelForCausalLM": "modeling.Evil"},
    )
    (small / "modeling.py").write_text("raise SystemExit")
    (small / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    load(small)


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "dynamic", "factor": 4.0}, 512),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 12,
                "long_factor": [2.0] * 12,
                "original_max_position_embeddings": 64,
            },
            64,
        ),
    ],
)
def test_ropes_that_depend_on_the_length_are_served_as_far_as_they_do_not(
    rope: dict[str, Any], longest: int
) -> None:
    cls = fallback_class("SeedOssForCausalLM")
    assert cls is not None
    config = small_config("SeedOssForCausalLM").to_dict()
    config |= {"rope_parameters": {"rope_theta": 10_000.0, **rope}}
    assert cls(config).max_length() == longest


def test_positions_are_counted_from_where_the_model_does(tmp_path: Path) -> None:
    save("RobertaForCausalLM", tmp_path)
    model = load_fallback(tmp_path)
    padding = model.hf_config.pad_token_id
    assert model.first_position == padding + 1
    assert model.max_length() == model.hf_config.max_position_embeddings - padding - 1


def test_an_architecture_that_nobody_has_compared_is_named_in_the_log(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("axion.models.transformers_fallback._verified", frozenset)
    load(small)
    assert f"{ARCHITECTURE} has not been compared" in caplog.text
