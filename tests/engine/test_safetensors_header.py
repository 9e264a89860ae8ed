"""Headers of safetensors files: what they tell, and what a damaged file is told apart by."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_cluster.tiny_models import write_safetensors
from quire_engine.errors import ModelCorrupt
from quire_engine.safetensors_header import FIRST_READ, TensorEntry, read_header, whole_file_header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": ((2, 3), bytes(12)), "b": ((), bytes(2)), "empty": ((0,), b"")})
    return path


def test_a_header_tells_tensors_and_size(path: Path) -> None:
    header = whole_file_header(path)
    assert header.tensors == {
        "a": TensorEntry("BF16", (2, 3), (0, 12)),
        "b": TensorEntry("BF16", (), (12, 14)),
        "empty": TensorEntry("BF16", (0,), (14, 14)),
    }
    assert header.file_bytes == path.stat().st_size


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    text = b'{"__metadata__": {"format": "pt"}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert whole_file_header(path).tensors == {}


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, b"\x02" + b"\x00" * 7 + b"[]"])
def test_no_safetensors_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"header.*fetch the model again"):
        whole_file_header(path)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_or_longer_file_is_never_whole(path: Path, data: st.DataObject) -> None:
    whole = path.read_bytes()
    other = path.with_name("other.safetensors")
    length = data.draw(st.integers(0, len(whole) + 20).filter(lambda n: n != len(whole)))
    other.write_bytes((whole + bytes(20))[:length])
    with pytest.raises(ModelCorrupt, match=r"other\.safetensors"):
        whole_file_header(other)


def test_one_read_for_a_short_header_and_two_for_a_long_one(path: Path) -> None:
    spans: list[tuple[int, int]] = []
    content = path.read_bytes()

    def read(start: int, stop: int) -> bytes:
        spans.append((start, stop))
        return content[start:stop]

    read_header(read, "x")
    assert spans == [(0, FIRST_READ)]
    tensors = {f"layer.{number}": ((1,), b"\0\0") for number in range(2000)}
    write_safetensors(path, tensors)
    content = path.read_bytes()
    header = read_header(read, "x")
    assert spans[1:] == [(0, FIRST_READ), (FIRST_READ, header.num_bytes)]
    assert header.tensors.keys() == tensors.keys()
