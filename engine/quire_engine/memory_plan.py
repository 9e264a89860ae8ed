"""What a model needs of a device's memory, before it is loaded. Arithmetic: no torch, no files.

    memory · utilization = runtime + weights + rotary table + activations + blocks · block_bytes

The weights are known to the byte from the files' headers (weight_facts.py). The activations are
bounded because the step's token budget and number of sequences are (activations.py). What is left
holds the KV cache: no profiling run. All figures are those of one GPU, or of the whole process on a
CPU. `quire-engine plan` and the start of `serve` both call `make_plan` and nothing else: what the
one says the other does.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import msgspec

from quire_engine.activations import activation_bytes
from quire_engine.adapters import AdapterFacts, adapter_bytes, lora_values
from quire_engine.config import BUILT_TENSOR_PARALLEL, EngineConfig, token_budget
from quire_engine.errors import ConfigError
from quire_engine.gpu_types import smallest_gpu
from quire_engine.models.config import ModelConfig
from quire_engine.weight_facts import (
    DTYPE_BYTES,
    DeviceKind,
    WeightFacts,
    compute_dtype,
    part_of,
    require_quantizable,
    weight_bytes,
    weight_dtype,
)

# On a CPU the same memory holds both processes' interpreters and libraries: 293 MiB in the core
# (torch), 70 MiB in the API process, and a part of the libraries' files that must stay in memory.
CPU_RUNTIME_BYTES = 448 << 20
MAX_CPU_KV_BYTES = 4 << 30  # unless a longer context is asked for
MIN_CONTEXT = 1024  # tokens; a shorter context serves nobody who did not ask for it
FEWEST_TOKENS = 128  # the smallest token budget that advice goes down to
GPU_COUNTS = (2, 4, 8, 16)
PAGE_BYTES = 4096


@dataclass(frozen=True)
class MemoryPlan:
    """The outcome, for one GPU or for the CPU. What depends on the memory is None while that is
    unknown."""

    device: DeviceKind
    num_gpus: int  # that share the model; 1 on a CPU
    parameters: int  # of the whole model
    weight_bytes: int
    weight_dtype: str
    adapter_bytes: int  # of all LoRA adapters; on each GPU whole
    kv_bytes_per_token: int
    activation_bytes: int
    table_bytes: int  # rotary cosines and sines
    runtime_bytes: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    required_bytes: int  # to serve one sequence of max_model_len, or the cache that is asked for
    memory_bytes: int | None  # of the device, or the container's limit
    usable_bytes: int | None  # of it, by gpu_memory_utilization
    num_blocks: int | None
    max_concurrency: float | None  # sequences of max_model_len at once
    largest_model_len: int | None  # the longest context that fits; 0: not even the weights do
    refusal: str | None = None  # why it does not fit, and what would

    @property
    def block_bytes(self) -> int:
        return self.kv_bytes_per_token * self.block_size

    @property
    def fixed_bytes(self) -> int:
        """All but the KV cache."""
        loaded = self.weight_bytes + self.adapter_bytes + self.table_bytes
        return self.runtime_bytes + loaded + self.activation_bytes

    @property
    def fits(self) -> bool | None:
        if self.usable_bytes is None:
            return None
        return self.required_bytes <= self.usable_bytes


def make_plan(
    model: ModelConfig,
    weights: WeightFacts,
    engine: EngineConfig,
    device: DeviceKind,
    memory_bytes: int | None,
    adapters: tuple[AdapterFacts, ...] = (),
) -> MemoryPlan:
    """The plan of this model under these settings, with `refusal` set where it does not fit.

    `memory_bytes` are those of one GPU, or the container's limit on a CPU. ConfigError for settings
    that cannot be served in any memory.
    """
    require_quantizable(model, weights, engine, device)
    again = partial(
        _planned, model, weights, device=device, memory_bytes=memory_bytes, adapters=adapters
    )
    plan = again(engine)
    if plan.fits is False:
        return replace(plan, refusal=_refusal(plan, model, engine, again))
    return plan


def plans_by_memory(
    model: ModelConfig,
    weights: WeightFacts,
    engine: EngineConfig,
    memories: Iterable[int],
    adapters: tuple[AdapterFacts, ...] = (),
) -> list[MemoryPlan]:
    """The plans on GPUs of these memories, without words of what would fit: the tensors are counted
    once for all. ConfigError for settings that no GPU can serve."""
    require_quantizable(model, weights, engine, "cuda")
    bare = _without_cache(model, weights, engine, "cuda", adapters)
    return [_with_cache(bare, model, engine, memory) for memory in memories]


def context_limit(model: ModelConfig, engine: EngineConfig) -> int:
    """The longest context that is asked for, or that the model has. ConfigError above that."""
    asked, limit = engine.max_model_len, model.max_model_len
    if asked is not None and asked > limit:
        raise ConfigError(
            f"max_model_len must be <= {limit} (the model's limit), got {asked}; lower "
            "--max-model-len"
        )
    return asked or limit


def plan_rows(plan: MemoryPlan) -> Iterator[tuple[str, str]]:
    """The plan for people: names and values."""
    each = f" on each of {plan.num_gpus} GPUs" if plan.num_gpus > 1 else ""
    yield "device", f"{plan.device}{each}"
    yield "parameters", f"{plan.parameters:,}"
    exact = f"({plan.weight_bytes:,} B, {plan.weight_dtype})"
    yield "weights", f"{gibibytes(plan.weight_bytes)} {exact}"
    if plan.adapter_bytes:
        yield "LoRA adapters", gibibytes(plan.adapter_bytes)
    yield "activations, at most", gibibytes(plan.activation_bytes)
    yield "rotary table", gibibytes(plan.table_bytes)
    if plan.runtime_bytes:
        yield "processes", gibibytes(plan.runtime_bytes)
    yield "KV cache per token", f"{plan.kv_bytes_per_token:,} B"
    yield "context", f"{plan.max_model_len:,} tokens"
    yield "needed", gibibytes(plan.required_bytes)
    if plan.memory_bytes is not None and plan.usable_bytes is not None:
        yield "memory", f"{gibibytes(plan.memory_bytes)}, {gibibytes(plan.usable_bytes)} to use"
    if plan.num_blocks is not None:
        yield "KV cache blocks", f"{plan.num_blocks:,} of {plan.block_size} tokens"
    if plan.max_concurrency is not None:
        yield "full contexts at once", f"{plan.max_concurrency:,}"


def gibibytes(num_bytes: int) -> str:
    """For people: 16.0 GiB; below one GiB in MiB."""
    if num_bytes >= 1024**3:
        return f"{num_bytes / 1024**3:,.1f} GiB"
    return f"{num_bytes / 1024**2:,.1f} MiB"


# ---- the arithmetic -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cache:
    """The KV cache that a plan comes to."""

    num_blocks: int | None
    is_asked_for: bool


def _planned(
    model: ModelConfig,
    weights: WeightFacts,
    engine: EngineConfig,
    *,
    device: DeviceKind,
    memory_bytes: int | None,
    adapters: tuple[AdapterFacts, ...],
) -> MemoryPlan:
    bare = _without_cache(model, weights, engine, device, adapters)
    return _with_cache(bare, model, engine, memory_bytes)


def _without_cache(
    model: ModelConfig,
    weights: WeightFacts,
    engine: EngineConfig,
    device: DeviceKind,
    adapters: tuple[AdapterFacts, ...],
) -> MemoryPlan:
    """All that does not depend on how much memory there is."""
    limit = context_limit(model, engine)
    part = part_of(model, engine.tensor_parallel_size)
    compute_bytes = DTYPE_BYTES[compute_dtype(engine, device)]
    return MemoryPlan(
        device=device,
        num_gpus=engine.tensor_parallel_size,
        parameters=weights.parameters,
        weight_bytes=weight_bytes(part, weights, engine, device),
        weight_dtype=weight_dtype(weights, engine, device),
        adapter_bytes=sum(adapter_bytes(a, model, engine, device) for a in adapters),
        kv_bytes_per_token=part.kv_bytes_per_token(compute_bytes),
        activation_bytes=activation_bytes(
            part, model.vocab_size, engine, device, lora_values(part, adapters)
        ),
        table_bytes=_table_bytes(model, limit),
        runtime_bytes=CPU_RUNTIME_BYTES if device == "cpu" else 0,
        block_size=engine.block_size,
        max_model_len=limit,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=token_budget(
            device, engine.max_num_batched_tokens, engine.max_num_seqs
        ),
        required_bytes=0,
        memory_bytes=None,
        usable_bytes=None,
        num_blocks=None,
        max_concurrency=None,
        largest_model_len=None,
    )


def _usable(memory_bytes: int | None, engine: EngineConfig) -> int | None:
    if memory_bytes is None:
        return None
    whole_pages = memory_bytes // PAGE_BYTES * PAGE_BYTES  # as the kernel keeps a cgroup's limit
    return int(whole_pages * engine.gpu_memory_utilization)


def _with_cache(
    bare: MemoryPlan, model: ModelConfig, engine: EngineConfig, memory_bytes: int | None
) -> MemoryPlan:
    plan = replace(bare, memory_bytes=memory_bytes, usable_bytes=_usable(memory_bytes, engine))
    size, cache = plan.block_size, _cache_of(plan, engine)
    context = _context(plan, engine, cache)
    least = context if engine.max_model_len else max(context, min(MIN_CONTEXT, model.max_model_len))
    blocks_needed = -(-least // size)
    if cache.is_asked_for and cache.num_blocks is not None:
        blocks_needed = cache.num_blocks
    concurrency = None
    if cache.num_blocks is not None and context:
        concurrency = round(cache.num_blocks / -(-context // size), 2)
    return replace(
        plan,
        max_model_len=context if cache.is_asked_for else least,
        required_bytes=plan.fixed_bytes + blocks_needed * plan.block_bytes,
        num_blocks=cache.num_blocks,
        max_concurrency=concurrency,
        largest_model_len=_largest_model_len(plan, model),
    )


def _largest_model_len(plan: MemoryPlan, model: ModelConfig) -> int | None:
    """The longest --max-model-len that fits: its blocks, and its rows of the rotary table."""
    if plan.usable_bytes is None:
        return None
    room = plan.usable_bytes - (plan.fixed_bytes - plan.table_bytes)
    block_bytes = plan.block_bytes + plan.block_size * _table_bytes(model, 1)
    return min(max(0, room) // block_bytes * plan.block_size, model.max_model_len)


def _table_bytes(model: ModelConfig, context: int) -> int:
    return context * model.head_dim * DTYPE_BYTES["float32"]


def _cache_of(plan: MemoryPlan, engine: EngineConfig) -> _Cache:
    """Its blocks: as many as are asked for, else as fit."""
    if engine.num_gpu_blocks_override is not None:
        return _Cache(engine.num_gpu_blocks_override, is_asked_for=True)
    room = engine.kv_cache_memory_bytes
    if room is not None:
        if room < plan.block_bytes:
            raise ConfigError(
                f"the KV cache needs at least one block of {plan.block_bytes} bytes, got room for "
                f"{room} bytes; raise --kv-cache-memory-bytes"
            )
        return _Cache(room // plan.block_bytes, is_asked_for=True)
    if plan.usable_bytes is None:
        return _Cache(None, is_asked_for=False)
    blocks = max(0, plan.usable_bytes - plan.fixed_bytes) // plan.block_bytes
    if plan.device == "cpu":
        blocks = min(blocks, _cpu_limit(plan, engine))
    return _Cache(blocks, is_asked_for=False)


def _cpu_limit(plan: MemoryPlan, engine: EngineConfig) -> int:
    """Blocks that are enough on a CPU: the machine has other uses for its memory."""
    asked = -(-(engine.max_model_len or 0) // plan.block_size)
    return max(MAX_CPU_KV_BYTES // plan.block_bytes, asked)


def _context(plan: MemoryPlan, engine: EngineConfig, cache: _Cache) -> int:
    """The longest context: what is asked for, or what both the model and the cache can hold."""
    limit = plan.max_model_len
    if cache.num_blocks is None:
        return limit
    capacity = cache.num_blocks * plan.block_size
    if engine.max_model_len is None:
        return min(limit, capacity)
    if cache.is_asked_for and limit > capacity:
        raise ConfigError(
            f"max_model_len must be <= {capacity} tokens (the KV cache's {cache.num_blocks} "
            f"blocks), got {limit}; lower --max-model-len or raise the cache's size"
        )
    return limit


# ---- what would fit -----------------------------------------------------------------------------

_Again: TypeAlias = Callable[[EngineConfig], MemoryPlan]


def _refusal(plan: MemoryPlan, model: ModelConfig, engine: EngineConfig, again: _Again) -> str:
    assert plan.memory_bytes is not None
    assert plan.usable_bytes is not None
    place = "a GPU has" if plan.device == "cuda" else "the memory limit is"
    need = f"for a context of {plan.max_model_len:,} tokens"
    if engine.num_gpu_blocks_override or engine.kv_cache_memory_bytes:
        need = f"with the {plan.num_blocks:,} blocks of KV cache that are asked for"
    return (
        f"the model needs {gibibytes(plan.required_bytes)} {need}, {place} "
        f"{gibibytes(plan.memory_bytes)}, of which {gibibytes(plan.usable_bytes)} may be used "
        f"(--gpu-memory-utilization {engine.gpu_memory_utilization:g}); "
        f"{_way_out(plan, model, engine, again)}"
    )


def _way_out(plan: MemoryPlan, model: ModelConfig, engine: EngineConfig, again: _Again) -> str:
    """The nearest setting that fits: a shorter context, a smaller step, more GPUs, more memory."""
    longest = plan.largest_model_len or 0
    if engine.num_gpu_blocks_override or engine.kv_cache_memory_bytes:
        if longest >= plan.max_model_len or longest >= MIN_CONTEXT:
            blocks = longest // plan.block_size
            return (
                f"the largest KV cache that fits has {blocks:,} blocks ({longest:,} tokens: "
                f"{_at_once(longest, plan)})"
            )
    elif longest >= min(MIN_CONTEXT, plan.max_model_len):
        return (
            f"the largest context that fits is {longest:,}, {_at_once(longest, plan)} "
            f"(--max-model-len {longest})"
        )
    return _smaller_step(engine, plan, again) or _more(plan, engine, again)


def _at_once(tokens: int, plan: MemoryPlan) -> str:
    """How many sequences a cache of so many tokens serves."""
    short = min(tokens // MIN_CONTEXT, plan.max_num_seqs)
    more = f", or {short:,} of {MIN_CONTEXT:,} tokens" if short > 1 else ""
    return f"one sequence of it at a time{more}"


def _serving(plan: MemoryPlan) -> str:
    """Context and concurrency of a plan that fits."""
    sequences = min(int(plan.max_concurrency or 0), plan.max_num_seqs)
    return f"a context of {plan.max_model_len:,} fits, {sequences:,} of it at a time"


def _smaller_step(engine: EngineConfig, plan: MemoryPlan, again: _Again) -> str | None:
    """Fewer sequences and tokens in a step leave more memory for the context."""
    seqs, tokens = plan.max_num_seqs, plan.max_num_batched_tokens
    while seqs > 1 or tokens > FEWEST_TOKENS:
        seqs, tokens = max(1, seqs // 2), max(FEWEST_TOKENS, tokens // 2)
        smaller = msgspec.structs.replace(
            engine, max_num_seqs=min(seqs, tokens), max_num_batched_tokens=tokens
        )
        for asked in (engine.max_model_len, None):
            other = again(msgspec.structs.replace(smaller, max_model_len=asked))
            if other.fits:
                return (
                    f"with --max-num-seqs {other.max_num_seqs} --max-num-batched-tokens {tokens} "
                    f"{_serving(other)}"
                )
    return None


def _more(plan: MemoryPlan, engine: EngineConfig, again: _Again) -> str:
    least = gibibytes(int(plan.required_bytes / engine.gpu_memory_utilization))
    if plan.device == "cpu":
        return f"give it a memory limit of {least} or more, or take a smaller model"
    known = smallest_gpu(int(plan.required_bytes / engine.gpu_memory_utilization))
    such_as = "" if known is None else f", such as {known.name}"
    for num_gpus in GPU_COUNTS:
        if num_gpus <= plan.num_gpus:
            continue
        try:
            other = again(msgspec.structs.replace(engine, tensor_parallel_size=num_gpus))
        except ConfigError:  # heads that so many GPUs cannot share
            continue
        if other.fits:
            built = "" if num_gpus <= BUILT_TENSOR_PARALLEL else ", which is not built yet"
            return (
                f"take a GPU of {least} or more{such_as}; over several like this one, with "
                f"--tensor-parallel-size {num_gpus}{built}, {_serving(other)}"
            )
    return f"take a GPU of {least} or more{such_as}, or a smaller model"
