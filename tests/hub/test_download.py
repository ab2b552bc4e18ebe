from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from axion.hub.download import explain


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "disk of the model cache is full"),
        (errno.EDQUOT, "disk of the model cache is full"),
        (errno.EACCES, "cannot be written"),
        (errno.EROFS, "cannot be written"),
    ],
)
def test_disk_faults_name_the_setting_that_moves_the_cache(number: int, said: str) -> None:
    message = explain(OSError(number, os.strerror(number), "/secret/path"), "a/b", "main").message
    assert said in message
    assert "HF_HOME" in message
    assert "/secret" not in message


def test_resolving_does_not_load_the_download_client_into_the_api_process() -> None:
    program = (
        "import sys, axion.hub.resolve; "
        "print([m for m in ('huggingface_hub', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
