"""Flag beats variable, variable beats file, file beats default; and nothing wrong gets through."""

from __future__ import annotations

from pathlib import Path

import pytest

from axion.settings import (
    Settings,
    SettingsError,
    listed,
    load_settings,
    named_models,
    shares,
)

# The numbers that the product promises.
DEFAULTS = {
    "model_name": "meta-llama/Llama-3.2-3B-Instruct",
    "max_seq_len": 4096,
    "server_host": "0.0.0.0",
    "server_port": 3000,
    "max_connections": 100,
    "cache_capacity": 1000,
    "batch_timeout_ms": 50,
    "max_batch_size": 8,
    "concurrent_requests": 10,
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*Settings.model_fields, "axion_config"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_it_runs_without_any_setting():
    settings = load_settings()
    assert {name: getattr(settings, name) for name in DEFAULTS} == DEFAULTS


def test_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "axion.toml").write_text("server_port = 1\nmax_seq_len = 11\nmax_batch_size = 21\n")
    monkeypatch.setenv("MAX_SEQ_LEN", "12")
    monkeypatch.setenv("MAX_BATCH_SIZE", "22")
    settings = load_settings(max_batch_size="23", server_host=None)
    assert (settings.server_port, settings.max_seq_len, settings.max_batch_size) == (1, 12, 23)
    assert settings.server_host == "0.0.0.0"


def test_another_file_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    other = tmp_path / "other.toml"
    other.write_text('model_name = "axion/demo"')
    monkeypatch.setenv("AXION_CONFIG", str(other))
    assert load_settings().model_name == "axion/demo"
    monkeypatch.setenv("AXION_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(SettingsError, match=r"missing\.toml"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "match"),
    [("max_sequence_len = 3", "max_sequence_len"), ("server_port = ", "not valid TOML")],
)
def test_a_file_with_a_fault_is_refused(tmp_path: Path, text: str, match: str):
    (tmp_path / "axion.toml").write_text(text)
    with pytest.raises(SettingsError, match=match):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVER_PORT", "65536"),
        ("SERVER_PORT", "http"),
        ("MAX_SEQ_LEN", "0"),
        ("MAX_CONNECTIONS", "-1"),
        ("CONCURRENT_REQUESTS", "1.5"),
        ("DEVICE", "tpu"),
        ("DTYPE", "int3"),
        ("MEMORY_FRACTION", "1.1"),
        ("MEMORY_FRACTION", "nan"),
        ("KV_CACHE_GIB", "0"),
        ("CPU_THREADS", "10000"),
        ("LOG_FORMAT", "xml"),
        ("AXION_BACKENDS", "vllm,,native"),
        ("STANDBY", "sometimes"),
        ("ALLOWED_ORIGINS", "chat.example.com"),
        ("ALLOWED_ORIGINS", "https://a/b"),
        ("ALLOWED_ORIGINS", "https://*.example.com"),
        ("ALLOWED_MODEL_FOLDERS", "models"),
        ("ALLOW_PICKLE", "perhaps"),
        ("BACKEND_WEIGHTS", "vllm"),
        ("BACKEND_WEIGHTS", "vllm=-1"),
        ("BACKEND_WEIGHTS", "vllm=inf"),
        ("BACKEND_WEIGHTS", "sglang=0.5"),
        ("SHADOW", "native=2"),
        ("SHADOW", "native=0.1,vllm=0.1"),
        ("REMOTE_URL", "localhost:8000"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_given(monkeypatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert name in error.value.message
    assert value in error.value.message


def test_origins_are_written_as_browsers_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALLOWED_ORIGINS", "https://Chat.example.com, moz-extension://0a-1b, *")
    expected = "https://chat.example.com, moz-extension://0a-1b, *"
    assert load_settings().allowed_origins == expected


def test_all_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVER_PORT", "-1")
    monkeypatch.setenv("MAX_SEQ_LEN", "x")
    with pytest.raises(SettingsError, match=r"(?s)MAX_SEQ_LEN.*SERVER_PORT"):
        load_settings()


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "axion.toml").write_text('axion_backends = "vllm"')
    expected = load_settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")
    assert load_settings() == expected
    assert expected.axion_backends == "vllm"


@pytest.mark.parametrize("name", ["axion_backends", "embedding_model", "rerank_model"])
def test_an_empty_flag_or_key_of_the_file_is_a_value(tmp_path: Path, name: str):
    with pytest.raises(SettingsError, match=name.upper()):
        load_settings(**{name: ""})
    (tmp_path / "axion.toml").write_text(f'{name} = ""')
    with pytest.raises(SettingsError, match=name.upper()):
        load_settings()


@pytest.mark.parametrize(
    ("models", "named"),
    [
        ("BAAI/bge-small-en-v1.5", {"BAAI/bge-small-en-v1.5": "BAAI/bge-small-en-v1.5"}),
        ("/models/minilm/, ./b", {"minilm": "/models/minilm/", "b": "./b"}),
        ("ada = ~/x,c/d", {"ada": "~/x", "c/d": "c/d"}),
    ],
)
def test_pooling_models_have_names(models: str, named: dict[str, str]):
    assert named_models(Settings(embedding_model=models).embedding_model) == named


@pytest.mark.parametrize("models", ["a,,b", "a=", "=a,", "/", "/m/a,a=/m/b", " "])
def test_pooling_models_without_a_name_or_with_the_same_are_refused(models: str):
    with pytest.raises(SettingsError, match="RERANK_MODEL"):
        load_settings(rerank_model=models)


def test_lists_and_shares_are_read():
    assert listed("max, vllm ,native") == ["max", "vllm", "native"]
    assert shares("vllm=0.9, native = 1") == {"vllm": 0.9, "native": 1.0}
    assert shares("") == {}


def test_the_key_of_a_remote_is_not_shown():
    settings = load_settings(remote_api_key="sk-secret")
    assert "sk-secret" not in repr(settings)
