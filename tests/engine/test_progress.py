import ctypes
import os

import pytest

from quire_engine.progress import Progress, ProgressFile


def test_the_other_side_sees_what_the_core_marks(tmp_path):
    path = tmp_path / "progress"
    reader = ProgressFile.create(path)
    assert reader.read() == Progress(counter=0, pending=0, updated_ns=0)
    writer = ProgressFile.open(path)
    writer.mark(3)
    first = reader.read()
    assert (first.counter, first.pending) == (1, 3)
    assert first.updated_ns > 0
    writer.bump()
    assert reader.read().counter == 2


def test_a_kernel_can_bump_the_counter_by_its_address(tmp_path):
    path = tmp_path / "progress"
    reader, writer = ProgressFile.create(path), ProgressFile.open(path)
    ctypes.c_int64.from_address(writer.counter_address).value += 7
    assert reader.read().counter == 7


def test_another_process_moves_the_same_counter(tmp_path):
    path = tmp_path / "progress"
    reader = ProgressFile.create(path)
    child = os.fork()
    if child == 0:
        ProgressFile.open(path).mark(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.read().pending == 1


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        ProgressFile.open(tmp_path / "progress")
