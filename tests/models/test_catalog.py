"""The list of architectures is what was measured of this code, by `tests.parity.catalog`."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pytest

from axion.models.registry import model_classes
from tests.parity.catalog import CATALOG, DOCUMENT, architectures, render


@pytest.fixture(scope="module")
def catalog() -> dict[str, Any]:
    return json.loads(CATALOG.read_text())


def test_the_document_says_what_was_measured(catalog: dict[str, Any]) -> None:
    assert DOCUMENT.read_text() == render(catalog)


def test_every_architecture_of_this_transformers_was_measured(catalog: dict[str, Any]) -> None:
    assert catalog["transformers"] == version("transformers")
    assert catalog["architectures"].keys() >= set(architectures())


def test_every_native_architecture_gives_transformers_answers(catalog: dict[str, Any]) -> None:
    rows = {name: catalog["architectures"][name] for name in model_classes()}
    assert {name: row for name, row in rows.items() if row["way"] != "native"} == {}
    others = {name: row["reason"] for name, row in rows.items() if not row["equal"]}
    # What transformers cannot run here is compared by its parts, in tests/parity.
    assert [name for name in others if "transformers itself" not in others[name]] == []


def test_whoever_is_refused_is_told_why(catalog: dict[str, Any]) -> None:
    rows = catalog["architectures"].items()
    assert [name for name, row in rows if not row["equal"] and not row["reason"]] == []
