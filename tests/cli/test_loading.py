"""What the commands show while a model loads."""

from __future__ import annotations

import logging

import pytest

from axion.cli import loading


def test_progress_is_logged_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.INFO, "axion")
    monkeypatch.setattr(loading, "LOG_INTERVAL_S", 0)
    with loading.progress() as show:
        show("Loading weights", 5 * 10**6, 10 * 10**6)
        show("Loading weights", 10 * 10**6, 10 * 10**6)
    assert caplog.messages == ["Loading weights: 5 of 10 MB", "Loading weights: 10 of 10 MB"]
