"""GPUs by name."""

import re

import pytest

from quire_engine.errors import ConfigError
from quire_engine.gpu_types import GPU_TYPES, find_gpu, smallest_gpu

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H100 80GB", "H100 80GB"),
        ("h100-80gb", "H100 80GB"),
        ("H100 NVL", "H100 NVL 94GB"),
        ("A100 80", "A100 80GB"),
        ("a100/40", "A100 40GB"),
        ("L4", "L4 24GB"),
        ("A10", "A10 24GB"),
        ("a10g", "A10G 24GB"),
        ("NVIDIA L40S", "L40S 48GB"),
        ("NVIDIA-A100-SXM4-80GB", "A100 80GB"),  # nvidia.com/gpu.product
        ("NVIDIA-H100-80GB-HBM3", "H100 80GB"),
        ("Tesla-V100-SXM2-16GB", "V100 16GB"),
        ("Tesla-T4", "T4 16GB"),
    ],
)
def test_a_gpu_has_many_spellings(text: str, name: str) -> None:
    assert find_gpu(text).name == name


def test_every_type_is_found_by_its_own_name() -> None:
    assert [find_gpu(gpu.name) for gpu in GPU_TYPES] == list(GPU_TYPES)


def test_cuda_finds_less_than_the_name_says() -> None:
    for gpu in GPU_TYPES:
        said = re.search(r"(\d+)GB$", gpu.name)
        assert said is not None
        assert 0.88 * int(said[1]) * 1e9 < gpu.memory_bytes < 1.08 * int(said[1]) * 1e9


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("A100", "got 'A100'; take A100 40GB or A100 80GB, or give"),
        ("H100", "take H100 80GB or H100 NVL 94GB, or give"),
        ("H200 80GB", "got 'H200 80GB'; take H100 80GB or "),
        ("L40X", "take L40"),
        ("frobnicator", "take one of these, or give the memory of another with --memory"),
        ("", "got ''; take one of these"),
        ("NVIDIA", "take one of these"),
    ],
)
def test_a_name_of_none_or_of_several_is_told_the_nearest(text: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(advice)) as refused:
        find_gpu(text)
    assert str(refused.value).startswith("gpu must name one of T4 16GB, V100 16GB,")


def test_the_smallest_that_is_enough() -> None:
    assert smallest_gpu(1) == find_gpu("T4")
    assert smallest_gpu(find_gpu("T4").memory_bytes + 1) == find_gpu("V100 16GB")
    assert smallest_gpu(100 * GIB) == find_gpu("H200")
    assert smallest_gpu(1000 * GIB) is None
