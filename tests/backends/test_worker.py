"""The parts of a worker that need no process; `native/test_engine.py` drives one with an engine."""

from __future__ import annotations

from axion.backends.worker import tuning


def test_a_users_own_values_of_memory_tuning_come_first():
    assert "LRU_CACHE_CAPACITY" in tuning({})
    assert "LRU_CACHE_CAPACITY" not in tuning({"LRU_CACHE_CAPACITY": "7"})
