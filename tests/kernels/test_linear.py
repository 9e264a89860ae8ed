import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_kernels import KernelInputError, Quantization, WeightRows
from quire_kernels.backends import Backend, cpp_backend, torch_backend
from quire_kernels.library import available_isas
from quire_kernels.ops.linear import packed as packed_linear

SHAPES = [(1, 1, 1), (1, 960, 576), (2, 33, 5), (5, 16, 1), (7, 17, 100), (13, 100, 2500)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
QUANTIZATIONS = [None, "int8"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
def test_equals_double_precision(
    cpu_backend: Backend, rows: int, columns: int, depth: int, dtype: torch.dtype
) -> None:
    x, bias = torch.randn(rows, depth), torch.randn(columns)
    weight = torch.randn(columns, depth).to(dtype)
    result = cpu_backend.linear(x, cpu_backend.pack_linear(weight), bias)
    expected = x.double() @ weight.double().T + bias
    bound = 1e-6 * depth**0.5 * 3 + 1e-6
    torch.testing.assert_close(result.double(), expected, atol=bound, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "quantization"), [*((dtype, None) for dtype in DTYPES), (torch.bfloat16, "int8")]
)
def test_bitwise_the_same_at_any_number_of_rows_and_threads(
    compiled: Backend, dtype: torch.dtype, quantization: str | None
) -> None:
    x = torch.randn(140, 1100)
    packed = compiled.pack_linear(torch.randn(83, 1100).to(dtype), quantization)
    compiled.set_num_threads(1)
    alone = torch.cat([compiled.linear(row, packed) for row in x.split(1)])
    for num_threads in (1, 3):
        compiled.set_num_threads(num_threads)
        for rows in (1, 2, 3, 4, 5, 6, 7, 12, 37, 140):
            assert torch.equal(compiled.linear(x[:rows], packed), alone[:rows]), rows


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.skipif(not available_isas(), reason="no compiled variant")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 90),
    depth=st.integers(1, 200),
    data=st.data(),
)
def test_a_row_does_not_depend_on_its_neighbours(
    quantization: str | None, rows: int, columns: int, depth: int, data: st.DataObject
) -> None:
    backend = cpp_backend(available_isas()[0])
    packed = backend.pack_linear(torch.randn(columns, depth).bfloat16(), quantization)
    x = torch.randn(rows, depth)
    begin = data.draw(st.integers(0, rows - 1))
    end = data.draw(st.integers(begin + 1, rows))
    assert torch.equal(backend.linear(x[begin:end], packed), backend.linear(x, packed)[begin:end])


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_all_instruction_sets_give_the_same_bits(quantization: str | None) -> None:
    x, weight = torch.randn(9, 170), torch.randn(50, 170).bfloat16()
    results = []
    for isa in available_isas():
        backend = cpp_backend(isa)
        results.append(backend.linear(x, backend.pack_linear(weight, quantization)))
    assert all(torch.equal(result, results[0]) for result in results)


def test_rows_may_be_far_apart(compiled: Backend) -> None:
    wide, weight = torch.randn(6, 50), torch.randn(20, 30)
    packed = compiled.pack_linear(weight)
    assert torch.equal(
        compiled.linear(wide[:, 10:40], packed), compiled.linear(wide[:, 10:40].clone(), packed)
    )


def test_writes_into_out(cpu_backend: Backend) -> None:
    packed = cpu_backend.pack_linear(torch.randn(20, 30))
    x, out = torch.randn(4, 30), torch.empty(4, 20)
    assert cpu_backend.linear(x, packed, None, out) is out
    assert torch.equal(out, cpu_backend.linear(x, packed))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_no_rows(cpu_backend: Backend, quantization: str | None) -> None:
    packed = cpu_backend.pack_linear(torch.randn(20, 30), quantization)
    assert cpu_backend.linear(torch.empty(0, 30), packed).shape == (0, 20)


def test_weights_are_kept_in_the_narrowest_format_that_loses_nothing(compiled: Backend) -> None:
    weight = torch.randn(32, 10)
    exact = weight.bfloat16().float()
    formats = {
        "bf16": (compiled.pack_linear(weight.bfloat16()), "panels-bf16", 2),
        "fp16": (compiled.pack_linear(weight.half()), "panels-fp16", 2),
        "fp32 of bf16 values": (compiled.pack_linear(exact), "panels-bf16", 2),
        "fp32": (compiled.pack_linear(weight), "panels-fp32", 4),
    }
    for name, (packed, wanted, size) in formats.items():
        assert packed.format == wanted, name
        assert packed.nbytes == 32 * 10 * size, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_returns_the_weight_itself(cpu_backend: Backend, dtype: torch.dtype) -> None:
    weight = torch.randn(37, 21).to(dtype)
    ids = torch.tensor([36, 0, 15, 16, 17, 36])
    packed = cpu_backend.pack_linear(weight)
    assert torch.equal(cpu_backend.embedding(ids, packed), weight[ids].float())
    out = torch.empty(6, 21)
    assert cpu_backend.embedding(ids, packed, out) is out
    assert torch.equal(out, weight[ids].float())


def test_embedding_refuses_an_out_of_another_shape(compiled: Backend) -> None:
    packed = compiled.pack_linear(torch.randn(37, 21))
    with pytest.raises(KernelInputError, match=r"out must be a contiguous float32 \[2, 21\]"):
        compiled.embedding(torch.tensor([3, 1]), packed, torch.empty(2, 22))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("bad", [-1, 37])
def test_embedding_refuses_ids_outside(
    compiled: Backend, bad: int, quantization: str | None
) -> None:
    packed = compiled.pack_linear(torch.randn(37, 21), quantization)
    with pytest.raises(KernelInputError, match=rf"\[0, 37\), got {bad} at index 1"):
        compiled.embedding(torch.tensor([3, bad]), packed)


@pytest.mark.parametrize(
    ("x", "rule"),
    [
        (torch.zeros(2, 29), r"x must be float32 \[T, 30\]"),
        (torch.zeros(30), r"x must be float32 \[T, 30\]"),
        (torch.zeros(2, 30, dtype=torch.bfloat16), "torch.bfloat16"),
        (torch.zeros(30, 2).T, "strides"),
    ],
)
def test_bad_input_is_named(compiled: Backend, x: torch.Tensor, rule: str) -> None:
    packed = compiled.pack_linear(torch.randn(20, 30))
    with pytest.raises(KernelInputError, match=rule):
        compiled.linear(x, packed)


def test_bad_bias_and_out_are_named(compiled: Backend) -> None:
    packed, x = compiled.pack_linear(torch.randn(20, 30)), torch.zeros(2, 30)
    with pytest.raises(KernelInputError, match="bias must be"):
        compiled.linear(x, packed, torch.zeros(19))
    with pytest.raises(KernelInputError, match="out must be"):
        compiled.linear(x, packed, None, torch.zeros(2, 21))
    with pytest.raises(KernelInputError, match="weight must be"):
        compiled.pack_linear(torch.zeros(3, dtype=torch.int32))


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_that_is_read_by_rows_gives_the_same_bits(
    cpu_backend: Backend,
    dtype: torch.dtype,
    quantization: Quantization | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """48 rows at a time, the last piece shorter and its panel not full."""
    weight = torch.randn(150, 70).to(dtype)
    weight[:100] = weight[:100].bfloat16().to(dtype)  # float32 looks like bfloat16 at first
    whole = cpu_backend.pack_linear(weight, quantization)
    monkeypatch.setattr(packed_linear, "VALUES_AT_ONCE", 48 * 70)
    spans = []

    def read(begin: int, end: int) -> torch.Tensor:
        spans.append((begin, end))
        return weight[begin:end]

    rows = WeightRows((150, 70), dtype, weight.device, read)
    packed = cpu_backend.pack_linear(rows, quantization)
    assert (packed.format, packed.nbytes) == (whole.format, whole.nbytes)
    assert torch.equal(packed.data, whole.data)
    assert set(spans) == {(0, 48), (48, 96), (96, 144), (144, 150)}


def test_reference_runs_in_the_activations_dtype() -> None:
    packed = torch_backend().pack_linear(torch.randn(20, 30))
    assert torch_backend().linear(torch.zeros(2, 30, dtype=torch.bfloat16), packed).dtype == (
        torch.bfloat16
    )
