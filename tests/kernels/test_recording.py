import ctypes
import dataclasses
from collections.abc import Callable

import pytest
import torch

import quire_kernels
from quire_kernels import KernelInputError, Recording
from quire_kernels.backends import Backend, torch_backend


def recorded(backend: Backend, function: Callable[[], object]) -> Recording:
    _, recording = backend.record(function)
    assert recording is not None
    return recording


def test_a_replay_computes_from_what_stands_in_memory_then(compiled: Backend) -> None:
    x, weight = torch.randn(3, 32), torch.randn(32)
    normed, product = torch.empty(3, 32), torch.empty(3, 16)

    def step() -> torch.Tensor:
        compiled.rms_norm(x, weight, 1e-5, out=normed)
        return compiled.silu_mul(normed, out=product)

    result, recording = compiled.record(step)
    assert result is product
    assert recording is not None
    x.copy_(torch.randn(3, 32))
    product.zero_()
    assert recording.replay()
    assert torch.equal(product, compiled.silu_mul(compiled.rms_norm(x, weight, 1e-5)))


def test_a_replay_ends_at_the_first_call_that_refuses(compiled: Backend) -> None:
    ids, weight = torch.tensor([0, 1]), compiled.pack_linear(torch.randn(4, 16))
    rows, after = torch.zeros(2, 16), torch.zeros(2, 8)

    def step() -> None:
        compiled.embedding(ids, weight, out=rows)
        compiled.silu_mul(rows, out=after)

    recording = recorded(compiled, step)
    ids[1] = 4
    after.zero_()
    assert not recording.replay()
    assert not after.any()
    ids[1] = 3
    assert recording.replay()
    assert after.any()


def attend(backend: Backend, batch, out: torch.Tensor) -> None:  # type: ignore[no-untyped-def]
    backend.paged_attention(*(getattr(batch, f.name) for f in dataclasses.fields(batch)), out=out)


def test_each_check_is_made_again(compiled: Backend, make_batch) -> None:  # type: ignore[no-untyped-def]
    batch, out = make_batch([20, 3], [1, 1]), torch.empty(2, 9, 64)
    query, key = batch.query.clone(), torch.randn(2, 3, 64)
    positions, slots, cos_sin = torch.tensor([5, 6]), torch.tensor([0, -1]), torch.randn(8, 64)
    cases = [
        (lambda: compiled.rope(query, key, positions, cos_sin), positions, 8),
        (
            lambda: compiled.write_kv(key, key, batch.key_cache, batch.value_cache, slots),
            slots,
            batch.key_cache[:, :, 0, 0].numel(),
        ),
        (lambda: attend(compiled, batch, out), batch.block_tables[1], -1),
    ]
    for call, values, bad in cases:
        recording = recorded(compiled, call)
        assert recording.replay()
        good = values.clone()
        values[0] = bad
        assert not recording.replay()
        with pytest.raises(KernelInputError):
            call()
        values.copy_(good)
        assert recording.replay()


def test_a_replay_moves_the_progress_counter_with_each_call(compiled: Backend) -> None:
    x, out = torch.randn(2, 32), torch.empty(2, 16)
    cell = ctypes.c_int64(0)
    recording = recorded(compiled, lambda: [compiled.silu_mul(x, out=out) for _ in range(3)])
    quire_kernels.set_progress_counter(ctypes.addressof(cell))
    try:
        assert recording.replay()
        assert cell.value == 3
    finally:
        quire_kernels.set_progress_counter(None)


def test_threads_that_are_set_later_apply(compiled: Backend) -> None:
    x, weight = torch.randn(5, 300), compiled.pack_linear(torch.randn(700, 300))
    out = torch.empty(5, 700)
    expected = compiled.linear(x, weight)
    recording = recorded(compiled, lambda: compiled.linear(x, weight, out=out))
    compiled.set_num_threads(3)
    out.zero_()
    assert recording.replay()
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + 1,
        lambda x: x[torch.tensor([1])],
        lambda x: x[:, :5].reshape(-1),
        lambda x: x.double(),
        lambda x: x.zero_(),
        lambda x: torch.empty(2),
    ],
    ids=["computes", "gathers", "copies", "converts", "in place", "allocates"],
)
@pytest.mark.parametrize("inference", [False, True])
def test_what_torch_has_a_part_in_is_not_recorded(
    compiled: Backend, work: Callable[[torch.Tensor], torch.Tensor], inference: bool
) -> None:
    x, out = torch.randn(3, 32), torch.empty(3, 16)

    def step() -> torch.Tensor:
        compiled.silu_mul(x, out=out)
        return work(x)

    with torch.inference_mode(inference):
        assert compiled.record(step)[1] is None
        viewed = compiled.record(lambda: x[:1].view(2, 16).float().split(1))
    assert viewed[1] is not None


def test_after_a_failure_nothing_is_noted_any_more(compiled: Backend) -> None:
    x, out = torch.randn(3, 32), torch.empty(3, 16)

    def step() -> None:
        compiled.silu_mul(x, out=out)
        raise OSError("in the middle of a step")

    with pytest.raises(OSError, match="in the middle of a step"):
        compiled.record(step)
    recording = recorded(compiled, lambda: None)
    out.zero_()
    assert recording.replay()
    assert not out.any()


def test_torch_runs_and_records_nothing() -> None:
    x = torch.randn(3, 32)
    result, recording = torch_backend().record(lambda: torch_backend().silu_mul(x))
    assert torch.equal(result, torch_backend().silu_mul(x))
    assert recording is None


def test_the_cpus_kernels_are_recorded() -> None:
    x, out = torch.randn(3, 32), torch.empty(3, 16)
    result, recording = quire_kernels.record(lambda: quire_kernels.silu_mul(x, out=out))
    assert result is out
    assert (recording is None) == (quire_kernels.isa() == "torch")
