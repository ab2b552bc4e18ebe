"""How much memory the cache may take, and what is said when it is too little."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from axion.engine.kv_cache import _cgroup_headroom, num_blocks_that_fit
from axion.errors import ModelLoadError

MIB = 2**20


def write_group(folder: Path, limit: str, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon {used - files}\nactive_file {files // 2}\ninactive_file {files // 2}\n"
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own"
    path.write_text("4:memory:/old\n0::/outer/inner\n")
    return path


def test_files_that_were_read_do_not_count_as_used(tmp_path: Path, own: Path):
    write_group(tmp_path / "outer/inner", str(100 * MIB), 70 * MIB, files=50 * MIB)
    assert _cgroup_headroom(tmp_path, own) == 80 * MIB


def test_the_tightest_of_the_groups_around_the_process_counts(tmp_path: Path, own: Path):
    write_group(tmp_path / "outer/inner", "max", 10 * MIB)
    write_group(tmp_path / "outer", str(100 * MIB), 60 * MIB)
    write_group(tmp_path, str(500 * MIB), 100 * MIB)
    assert _cgroup_headroom(tmp_path, own) == 40 * MIB


def test_a_container_sees_its_group_as_the_root(tmp_path: Path, own: Path):
    own.write_text("0::/\n")
    write_group(tmp_path, str(100 * MIB), 60 * MIB)
    assert _cgroup_headroom(tmp_path, own) == 40 * MIB


@pytest.mark.parametrize("text", ["", "4:memory:/\n", "0::/elsewhere\n"])
def test_without_a_limit_the_machine_is_the_limit(tmp_path: Path, own: Path, text: str):
    own.write_text(text)
    assert _cgroup_headroom(tmp_path, own) == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("num_bytes", "advice"),
    [(130 * MIB, "MAX_SEQ_LEN to at most 2080,"), (0, "Give it"), (-(2**33), "Give it")],
)
def test_a_cache_that_does_not_fit_says_what_would_help(num_bytes: int, advice: str):
    with pytest.raises(ModelLoadError, match=advice) as caught:
        num_blocks_that_fit(
            bytes_per_block=MIB,
            block_size=16,
            max_model_len=4096,
            max_num_seqs=1,
            num_bytes=num_bytes,
        )
    assert "0.25 GiB" in caught.value.message
    assert ("MAX_SEQ_LEN" in caught.value.message) == (num_bytes > 0)


def test_the_cache_is_no_larger_than_its_sequences_can_use():
    num_blocks = num_blocks_that_fit(
        bytes_per_block=1, block_size=16, max_model_len=100, max_num_seqs=3, num_bytes=2**40
    )
    assert num_blocks == 4 * 3 * 7
