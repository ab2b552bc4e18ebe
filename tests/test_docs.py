"""The documents say what the code does. `python -m tests.test_docs` writes the settings' table."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from axion.observability.metrics import Metrics
from axion.openai.fields import RequestModel
from axion.openai.messages import MessagesRequest
from axion.openai.responses import ResponsesRequest
from axion.openai.tokenize import TokenizeRequest
from axion.settings import Settings
from axion.types import (
    BackendHealth,
    BackendState,
    EngineHealth,
    EngineStats,
    PoolingHealth,
    PoolingKind,
    PoolingStats,
)

ROOT = Path(__file__).parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


def settings_table() -> str:
    rows = ["| variable | flag | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        flag = f"`--{name.replace('_', '-')}`"
        rows.append(f"| `{name.upper()}` | {flag} | {default} | {field.description} |")
    return "\n".join(rows)


def test_every_setting_is_in_the_configuration_guide():
    text = CONFIGURATION.read_text()
    table = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert table == settings_table(), "run `python -m tests.test_docs`"


@pytest.mark.parametrize(
    ("title", "request_type"),
    [("Responses", ResponsesRequest), ("Messages", MessagesRequest), ("Tokens", TokenizeRequest)],
)
def test_every_field_is_in_the_api_reference(title: str, request_type: type[RequestModel]):
    text = (ROOT / "docs" / "api.md").read_text()
    section = re.split(r"^## ", text[text.index(f"\n## {title}\n") + 4 :], flags=re.MULTILINE)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert request_type.model_fields.keys() <= named


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")), ids=str
)
def test_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_metric_is_in_its_list():
    engine = BackendHealth(
        state=BackendState.READY,
        stats=EngineStats(),
        engines=(EngineHealth(engine="native", state=BackendState.READY),),
    )
    pooling = PoolingHealth(name="m", kind=PoolingKind.EMBEDDING, stats=PoolingStats())
    text = Metrics(lambda: 0, lambda: 0, lambda: 0).render({"m": engine}, [pooling]).decode()
    told = re.findall(r"^# HELP (axion_\S+) (.*)", text, re.MULTILINE)
    measured = {name: what for name, what in told if not name.endswith("_created")}
    rows = (ROOT / "docs" / "metrics.md").read_text()
    listed = dict(re.findall(r"^\| `(axion_\S+)` \|.*\| (.*) \|$", rows, re.MULTILINE))
    assert listed == measured


def test_adding_a_model_is_told_in_few_lines():
    text = (ROOT / "docs" / "adding-a-model.md").read_text()
    assert len(text.splitlines()) < 60
    assert "axion new-model" in text
    assert "axion parity" in text


def test_the_tests_that_the_security_guide_names_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    files = (ROOT / "tests").rglob("test_*.py")
    there = {name for path in files for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert len(named) > 10
    assert named - there == set()


def main() -> None:
    text = CONFIGURATION.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    CONFIGURATION.write_text(f"{before}\n{settings_table()}\n{after}")


if __name__ == "__main__":
    sys.exit(main())
