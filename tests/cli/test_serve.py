"""`axion serve`: a flag for every setting, and the words on the terminal."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from axion.cli import serve as command
from axion.cli.main import app
from axion.observability.logging import configure_logging
from axion.settings import Settings

runner = CliRunner()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """The settings that the command would serve with; nothing is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AXION_CONFIG", "")
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    settings: list[Settings] = []
    monkeypatch.setattr(command, "run_server", settings.append)
    return settings


@pytest.fixture
def help_text(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "400")
    result = runner.invoke(app, ["serve", "--help"])
    assert result.exit_code == 0
    return " ".join(result.output.split())


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_help_tells_flag_meaning_default_and_variable(help_text: str, name: str):
    field = Settings.model_fields[name]
    assert f"--{name.replace('_', '-')} " in help_text
    assert f"{field.description}." in help_text
    default = "unset" if field.default in (None, "") else field.default
    assert f"Default: {default}. Variable: {name.upper()}." in help_text


def test_without_arguments_it_serves_the_defaults(served: list[Settings]):
    assert runner.invoke(app, ["serve"]).exit_code == 0
    assert served == [Settings()]


def test_a_flag_wins_over_variable_file_and_default(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = tmp_path / "here.toml"
    config.write_text("server_port = 1\nmax_seq_len = 11\nmax_connections = 21\n")
    monkeypatch.setenv("SERVER_PORT", "2")
    monkeypatch.setenv("MAX_SEQ_LEN", "12")
    arguments = ["serve", "axion/demo", "--config", str(config), "--server-port", "3"]
    assert runner.invoke(app, arguments).exit_code == 0
    (settings,) = served
    assert settings.model_name == "axion/demo"
    assert settings.server_port == 3
    assert settings.max_seq_len == 12
    assert settings.max_connections == 21


def test_every_flag_takes_its_value(served: list[Settings], tmp_path: Path):
    wanted = Settings(
        model_name="a/b",
        device="cpu",
        dtype="float32",
        quantization="int8",
        kv_cache_gib=0.5,
        cpu_threads=3,
        tls_cert_file=tmp_path / "cert.pem",
        tls_key_file=tmp_path / "key.pem",
        axion_log="axion=debug,http=off",
        log_format="json",
        server_port=0,
    )
    flags = []
    for name, value in wanted:
        if value is not None and value != "":
            flags += [f"--{name.replace('_', '-')}", str(value)]
    assert runner.invoke(app, ["serve", *flags]).exit_code == 0
    assert served == [wanted]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server-port", "many"], "SERVER_PORT"),
        (["--server-port", "70000"], "SERVER_PORT"),
        (["--dtype", "int3"], "DTYPE"),
        (["--quantization", "int3"], "QUANTIZATION"),
        (["axion/demo", "--model-name", "other"], "Name the model once"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_what_cannot_be_used_is_named(served: list[Settings], arguments: list[str], message: str):
    result = runner.invoke(app, ["serve", *arguments])
    assert result.exit_code == 1
    assert message in str(result.exception)
    assert served == []


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({}, "http://localhost:3000"),
        ({"server_host": "::"}, "http://localhost:3000"),
        ({"server_host": "::1"}, "http://[::1]:3000"),
        ({"server_host": "10.0.0.7", "tls_cert_file": Path("x")}, "https://10.0.0.7:3000"),
    ],
)
def test_the_url_can_be_called(fields: dict[str, object], url: str):
    assert command._url(Settings(**fields), 3000) == url


def test_ready_shows_a_call_to_copy(capsys: pytest.CaptureFixture[str]):
    command._print("Ready.", command._example("http://localhost:3000", "it's/mine"))
    output = capsys.readouterr().out
    assert output.startswith("\nReady.\n\n  curl http://localhost:3000/v1/chat/completions")
    assert shlex.split(output)[-1] == json.dumps(
        {"model": "it's/mine", "messages": [{"role": "user", "content": "Hello!"}]}
    )


def test_where_the_log_is_json_and_off_it_still_says_where_the_server_listens(
    capfd: pytest.CaptureFixture[str],
):
    configure_logging("off", "json")
    logging.getLogger("axion").error("not heard")
    command._log("Listening on http://localhost:3000")
    configure_logging("info")
    [line] = capfd.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "Listening on http://localhost:3000"


def test_where_the_log_is_json_no_other_line_is_printed(tmp_path: Path):
    settings = {"LOG_FORMAT": "json", "AXION_BACKENDS": "native", "SERVER_PORT": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "axion", "serve", f"{tmp_path}/none"],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    *entries, error = ended.stderr.splitlines()
    assert any("Listening on" in json.loads(entry)["message"] for entry in entries)
    assert "does not exist" in error
