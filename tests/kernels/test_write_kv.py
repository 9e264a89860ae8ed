import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_kernels import KernelInputError
from quire_kernels.backends import Backend, cpp_backend, torch_backend, triton_backend
from quire_kernels.library import available_isas


def check(backend: Backend, shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> None:
    num_tokens, num_heads, dim = shape
    fused = torch.randn(num_tokens, 2 * num_heads + 3, dim).to(device, dtype)
    key, value = fused[:, :num_heads], fused[:, num_heads : 2 * num_heads]
    caches = torch.randn(2, 7, 5, num_heads, dim).to(device, dtype)
    slots = torch.randperm(35, device=device)[:num_tokens]
    slots[1::3] = -1
    expected = caches.clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[0, slot // 5, slot % 5] = key[token]
            expected[1, slot // 5, slot % 5] = value[token]
    backend.write_kv(key, value, caches[0], caches[1], slots)
    assert torch.equal(caches, expected)


SHAPES = [(1, 3, 64), (20, 3, 64), (35, 1, 5), (7, 2, 40), (0, 2, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_writes_where_the_slots_say_and_nowhere_else(
    cpu_backend: Backend, shape: tuple[int, int, int]
) -> None:
    check(cpu_backend, shape, "cpu", torch.float32)


@pytest.mark.skipif(not available_isas(), reason="no compiled variant")
@settings(max_examples=50, deadline=None)
@given(slots=st.lists(st.integers(-1, 29), max_size=30).map(lambda s: list(dict.fromkeys(s))))
def test_compiled_equals_the_reference(slots: list[int]) -> None:
    results = []
    rows = torch.randn(2, len(slots), 2, 3)
    for backend in (torch_backend(), cpp_backend(available_isas()[0])):
        caches = torch.zeros(2, 3, 10, 2, 3)
        backend.write_kv(*rows, *caches, torch.tensor(slots, dtype=torch.int64))
        results.append(caches)
    assert torch.equal(*results)


@pytest.mark.parametrize("bad", [-2, 10])
def test_slots_outside_are_refused_before_anything_is_written(compiled: Backend, bad: int) -> None:
    rows, caches = torch.randn(2, 2, 1, 4), torch.zeros(2, 2, 5, 1, 4)
    with pytest.raises(KernelInputError, match=rf"\[0, 10\), got {bad} for token 1"):
        compiled.write_kv(*rows, *caches, torch.tensor([0, bad]))
    assert not caches.any()


def test_bad_input_is_named(compiled: Backend) -> None:
    rows, caches = torch.randn(2, 2, 1, 4), torch.zeros(2, 2, 5, 1, 4)
    slots = torch.tensor([0, 1])
    with pytest.raises(KernelInputError, match="key and value must be"):
        compiled.write_kv(rows[0].half(), rows[1], *caches, slots)
    with pytest.raises(KernelInputError, match="caches must be"):
        compiled.write_kv(*rows, caches[0, :, :, :, :2], caches[1], slots)
    with pytest.raises(KernelInputError, match="slot_mapping must be"):
        compiled.write_kv(*rows, *caches, slots.int())


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_triton(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(triton_backend(), shape, "cpu", dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_on_a_gpu(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(triton_backend(), shape, "cuda", dtype)
