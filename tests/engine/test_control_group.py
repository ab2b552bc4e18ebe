"""A container's limits are those that count."""

from __future__ import annotations

from pathlib import Path

import pytest

from axion.engine.control_group import memory_headroom, num_processors

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
    assert memory_headroom(tmp_path, own) == 80 * MIB


def test_the_tightest_of_the_groups_around_the_process_counts(tmp_path: Path, own: Path):
    write_group(tmp_path / "outer/inner", "max", 10 * MIB)
    write_group(tmp_path / "outer", str(100 * MIB), 60 * MIB)
    write_group(tmp_path, str(500 * MIB), 100 * MIB)
    assert memory_headroom(tmp_path, own) == 40 * MIB


def test_a_container_sees_its_group_as_the_root(tmp_path: Path, own: Path):
    own.write_text("0::/\n")
    write_group(tmp_path, str(100 * MIB), 60 * MIB)
    assert memory_headroom(tmp_path, own) == 40 * MIB


@pytest.mark.parametrize("text", ["", "4:memory:/\n", "0::/elsewhere\n"])
def test_there_need_not_be_a_limit(tmp_path: Path, own: Path, text: str):
    own.write_text(text)
    assert memory_headroom(tmp_path, own) is None
    assert num_processors(tmp_path, own) is None


@pytest.mark.parametrize(
    ("outer", "inner", "number"),
    [("max 100000", "150000 100000", 1.5), ("50000 100000", "max 100000", 0.5)],
)
def test_the_time_of_processors_is_that_of_the_tightest_group(
    tmp_path: Path, own: Path, outer: str, inner: str, number: float
):
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "outer/cpu.max").write_text(f"{outer}\n")
    (tmp_path / "outer/inner/cpu.max").write_text(f"{inner}\n")
    assert num_processors(tmp_path, own) == number
