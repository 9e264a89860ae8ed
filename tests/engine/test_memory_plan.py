"""What a model needs of memory, and what would fit where it does not."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_cluster.tiny_models import TinyModel
from quire_engine import memory_plan
from quire_engine.activations import LOADING_BYTES, activation_bytes
from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.memory_plan import CPU_RUNTIME_BYTES, MAX_CPU_KV_BYTES, MemoryPlan
from quire_engine.models.config import from_hugging_face
from quire_engine.models.shapes import expected_shapes
from quire_engine.weight_facts import DeviceKind, TensorFacts, WeightFacts

GIB = 1024**3
LLAMA_8B = from_hugging_face(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }
)
LLAMA_8B_WEIGHTS = WeightFacts(
    tuple(
        TensorFacts(name, "BF16", math.prod(shape), 2 * math.prod(shape))
        for name, shape in expected_shapes(LLAMA_8B).items()
    )
)


def make_plan(memory: int | None = None, device: DeviceKind = "cuda", **flags: Any) -> MemoryPlan:
    engine = EngineConfig(model="m", gpu_memory_utilization=1.0, **flags)
    return memory_plan.make_plan(LLAMA_8B, LLAMA_8B_WEIGHTS, engine, device, memory)


def test_llama_3_1_8b_keeps_128_kib_a_token() -> None:
    """32 layers · 8 heads · 128 · K and V · 2 bytes, as its model card's arithmetic has it."""
    assert make_plan().kv_bytes_per_token == 131_072
    assert make_plan(device="cpu").kv_bytes_per_token == 262_144
    assert make_plan(tensor_parallel_size=2).kv_bytes_per_token == 65_536
    assert make_plan(tensor_parallel_size=16).kv_bytes_per_token == 131_072 // 8


def test_a_fit_says_how_much_fits() -> None:
    plan = make_plan(72 * GIB)
    assert plan.fits is True
    assert plan.refusal is None
    left = 72 * GIB - plan.weight_bytes - plan.activation_bytes - plan.table_bytes
    assert plan.num_blocks == left // (16 * 131_072)
    assert plan.max_concurrency == pytest.approx(plan.num_blocks / 8192, abs=0.01)


def test_only_a_share_of_the_memory_is_used() -> None:
    engine = EngineConfig(model="m", gpu_memory_utilization=0.5)
    half = memory_plan.make_plan(LLAMA_8B, LLAMA_8B_WEIGHTS, engine, "cuda", 80 * GIB)
    assert half.num_blocks == make_plan(40 * GIB).num_blocks


def test_without_a_context_asked_for_it_is_what_fits() -> None:
    plan = make_plan(24 * GIB)
    assert plan.fits is True
    assert plan.num_blocks is not None
    assert plan.max_model_len == plan.num_blocks * 16 < LLAMA_8B.max_model_len


def test_a_refusal_names_the_largest_context_that_fits() -> None:
    plan = make_plan(24 * GIB, max_model_len=100_000)
    assert plan.fits is False
    assert plan.refusal is not None
    assert "a GPU has 24.0 GiB" in plan.refusal
    assert f"the largest context that fits is {plan.largest_model_len:,}" in plan.refusal
    assert make_plan(24 * GIB, max_model_len=plan.largest_model_len).fits is True
    assert plan.largest_model_len is not None
    assert make_plan(24 * GIB, max_model_len=plan.largest_model_len + 1).fits is False
    short = plan.largest_model_len // 1024
    assert f"one sequence of it at a time, or {short} of 1,024 tokens" in plan.refusal
    several = make_plan(24 * GIB, max_model_len=1024)
    assert several.max_concurrency is not None
    assert several.max_concurrency >= short


def test_a_context_that_serves_nobody_does_not_fit() -> None:
    least = make_plan(max_model_len=1024).required_bytes
    assert make_plan(least).max_model_len == 1024
    assert make_plan(least - 1).fits is False
    small = make_plan(max_model_len=16).required_bytes
    assert make_plan(small, max_model_len=16).fits is True, "who asks for it gets it"


def test_else_a_smaller_step_is_named() -> None:
    memory = make_plan(max_num_seqs=32, max_num_batched_tokens=2048).required_bytes
    memory -= (LLAMA_8B.max_model_len - 2048) * 131_072
    refusal = make_plan(memory).refusal
    assert refusal is not None
    fitting = make_plan(memory, max_num_seqs=32, max_num_batched_tokens=2048)
    assert fitting.fits is True
    assert (
        "with --max-num-seqs 32 --max-num-batched-tokens 2048 a context of "
        f"{fitting.max_model_len:,} fits, 1 of it at a time"
    ) in refusal
    assert make_plan(memory, max_num_seqs=64, max_num_batched_tokens=4096).fits is False


def test_else_the_fewest_gpus_that_share_it() -> None:
    refusal = make_plan(8 * GIB).refusal
    assert refusal is not None
    assert make_plan(8 * GIB, tensor_parallel_size=2).fits is False
    fitting = make_plan(8 * GIB, tensor_parallel_size=4)
    assert fitting.fits is True
    assert (
        "with --tensor-parallel-size 4, which is not built yet, a context of "
        f"{fitting.max_model_len:,} fits, 1 of it at a time"
    ) in refusal


def test_else_more_memory() -> None:
    on_gpu = make_plan(GIB // 2)
    assert on_gpu.largest_model_len == 0
    assert "take a GPU of" in (on_gpu.refusal or "")
    on_cpu = make_plan(8 * GIB, "cpu")
    assert "the memory limit is 8.0 GiB" in (on_cpu.refusal or "")
    assert "give it a memory limit of" in (on_cpu.refusal or "")
    assert make_plan(on_cpu.required_bytes, "cpu").fits is True


def test_a_gpu_that_is_large_enough_is_named() -> None:
    refusal = make_plan(GIB // 2).refusal
    assert refusal is not None
    assert re.search(r"take a GPU of 16\.2 GiB or more, such as A10 24GB, or a smaller", refusal)


@pytest.mark.parametrize("flags", [{}, {"max_model_len": 30_000}, {"tensor_parallel_size": 2}])
def test_many_memories_are_planned_as_each_alone(flags: dict[str, int]) -> None:
    engine = EngineConfig(model="m", gpu_memory_utilization=1.0, **flags)  # type: ignore[arg-type]
    memories = [8 * GIB, 24 * GIB, 80 * GIB]
    plans = memory_plan.plans_by_memory(LLAMA_8B, LLAMA_8B_WEIGHTS, engine, memories)
    alone = [replace(make_plan(memory, **flags), refusal=None) for memory in memories]
    assert plans == alone
    assert {plan.fits for plan in plans} == {True, False}


def test_unknown_memory_refuses_nothing() -> None:
    plan = make_plan()
    assert plan.fits is None
    assert plan.refusal is None
    assert plan.num_blocks is None


def test_a_cpus_cache_is_bounded_unless_more_is_asked_for() -> None:
    plan = make_plan(200 * GIB, "cpu")
    assert plan.num_blocks == MAX_CPU_KV_BYTES // plan.block_bytes
    assert plan.runtime_bytes == CPU_RUNTIME_BYTES
    longer = make_plan(200 * GIB, "cpu", max_model_len=100_000)
    assert longer.fits is True
    assert longer.num_blocks == 100_000 // 16


def test_a_cache_that_is_asked_for_is_planned() -> None:
    by_blocks = make_plan(80 * GIB, num_gpu_blocks_override=100)
    assert (by_blocks.num_blocks, by_blocks.max_model_len) == (100, 1600)
    by_bytes = make_plan(80 * GIB, kv_cache_memory_bytes=100 * 16 * 131_072 + 1)
    assert by_bytes.num_blocks == 100
    assert by_bytes.required_bytes == by_blocks.required_bytes
    too_large = make_plan(20 * GIB, num_gpu_blocks_override=100_000)
    assert too_large.fits is False
    assert "with the 100,000 blocks of KV cache that are asked for" in (too_large.refusal or "")
    tokens = too_large.largest_model_len or 0
    assert (
        f"the largest KV cache that fits has {tokens // 16:,} blocks ({tokens:,} tokens: one "
        f"sequence of it at a time, or {tokens // 1024} of 1,024 tokens)"
    ) in (too_large.refusal or "")


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({"max_model_len": 131_073}, r"must be <= 131072 \(the model's limit\), got 131073"),
        ({"max_model_len": 100, "num_gpu_blocks_override": 4}, r"<= 64 tokens .* got 100"),
        ({"kv_cache_memory_bytes": 9}, "at least one block of 2097152 bytes, got room for 9"),
        ({"tensor_parallel_size": 3}, "must divide the model's 32 heads"),
    ],
)
def test_what_no_memory_can_serve(flags: dict[str, int], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        make_plan(80 * GIB, **flags)


@settings(deadline=None)  # the first example's imports take their time on a busy machine
@given(
    memory=st.integers(0, 100 * GIB),
    context=st.integers(1, 131072),
    block_size=st.sampled_from([8, 16, 32]),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_what_fits_is_what_the_blocks_hold(
    memory: int, context: int, block_size: int, device: DeviceKind
) -> None:
    plan = make_plan(memory, device, max_model_len=context, block_size=block_size)
    assert plan.num_blocks is not None
    assert plan.fits == (plan.num_blocks * block_size >= context)
    assert (plan.refusal is None) == plan.fits
    assert plan.num_blocks == 0 or plan.fixed_bytes + plan.num_blocks * plan.block_bytes <= memory


@given(st.integers(256, 8192), st.integers(256, 8192), st.integers(1, 256))
def test_activations_grow_with_the_budget(one: int, other: int, seqs: int) -> None:
    small, large = sorted((one, other))
    assert activations(small, seqs) <= activations(large, seqs)


def activations(tokens: int, seqs: int) -> int:
    engine = EngineConfig(model="m", max_num_seqs=seqs, max_num_batched_tokens=tokens)
    return activation_bytes(LLAMA_8B, LLAMA_8B.vocab_size, engine, "cuda")


def test_on_a_cpu_loading_takes_as_much_as_a_small_step() -> None:
    tiny = from_hugging_face(TinyModel().config())
    engine = EngineConfig(model="m", max_num_seqs=1, max_num_batched_tokens=1)
    assert activation_bytes(tiny, tiny.vocab_size, engine, "cpu") == LOADING_BYTES
    engine = EngineConfig(model="m", max_num_seqs=1, max_num_batched_tokens=10_000)
    assert activation_bytes(tiny, tiny.vocab_size, engine, "cpu") > LOADING_BYTES


def test_a_gpus_gated_activation_takes_what_is_planned() -> None:
    """Beside the fused gate-up one product, in its own dtype. Fake tensors: no GPU is needed."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from quire_kernels.ops.silu_mul.reference import silu_mul

    storages: dict[int, Any] = {}

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = op(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                storage = result.untyped_storage()
                storages[storage._cdata] = storage
            return result

    with FakeTensorMode():
        gate_up = torch.empty(4, 2 * 8, dtype=torch.bfloat16, device="cuda")
        with Allocations():
            product = silu_mul(gate_up)
    own = gate_up.untyped_storage()._cdata
    made = [storage.nbytes() for key, storage in storages.items() if key != own]
    assert (product.shape, product.dtype) == ((4, 8), torch.bfloat16)
    assert sum(made) <= 4 * 8 * 2
