"""That the kernels work at all: the other tests of this folder are skipped where they do not."""

from __future__ import annotations

import platform
import sys

import pytest

from axion.layers import cpu_kernels


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="torch's builds for other systems may compute without OpenMP",
)
def test_kernels_work_where_they_are_promised():
    assert cpu_kernels.work()
