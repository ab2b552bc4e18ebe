from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from axion.backends.capabilities import Capabilities, Support, capabilities_of
from axion.cli.conformance import save_report
from axion.cli.main import main
from axion.conformance.report import Report
from axion.conformance.suite import Row
from axion.errors import InvalidRequestError
from tests.backends.fake_server import FakeServer


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["conformance", *args])
    return int(caught.value.code or 0)


def report(version: str) -> Report:
    return Report(
        engine="thing",
        version=version,
        model="m",
        device="CPU",
        date=datetime.date(2026, 1, 2),
        features=[Row("n", "honoured", "3 choices | all"), Row("echo", "cannot tell", "why")],
        behaviour=[Row("[DONE]", "once, last", "1")],
        capabilities=Capabilities(
            engine="thing",
            version=version,
            measured="conformance",
            features={"n": Support.HONOURED},
        ),
    )


def test_a_running_server_is_checked(capfd: pytest.CaptureFixture[str]):
    with FakeServer() as fake:
        assert run("--url", fake.url, "--only", "n", "--only", "wrong model", "--json") == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["model"] == "fake-model"
    assert [row["name"] for row in found["features"]] == ["n"]
    assert [row["result"] for row in found["behaviour"]] == ["404"]
    assert "wrong model" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Name an engine"),
        (["nonsense"], "no engine 'nonsense'"),
        (["--url", "http://127.0.0.1:9/v1"], "no server"),
        (["--url", "http://127.0.0.1:9/v1", "--model", "m"], "no server"),
        (["--url", "nonsense"], "not a server's URL"),
    ],
)
def test_what_cannot_be_checked_is_said(
    capfd: pytest.CaptureFixture[str], args: list[str], message: str
):
    assert run(*args) == 1
    assert message in capfd.readouterr().err


def test_the_report_is_a_table_and_the_data_that_the_router_reads(tmp_path: Path):
    table, data = report("1.2+cpu").write(tmp_path / "out")
    assert (table.name, data.name) == ("thing-1.2+cpu.md", "thing-1.2+cpu.json")
    lines = table.read_text().splitlines()
    assert lines[0] == "# thing 1.2+cpu"
    assert "| `n` | honoured | 3 choices \\| all |" in lines
    assert json.loads(data.read_text())["features"] == {"n": "honoured"}


def test_what_is_saved_is_found_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    saved = report("1.2")
    save_report(saved)
    assert capabilities_of("thing", "1.2") == saved.capabilities


def test_what_has_no_version_is_not_saved():
    with pytest.raises(InvalidRequestError, match="version"):
        save_report(report(""))
