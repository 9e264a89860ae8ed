"""What `quire-engine plan` prints: a table for people, one JSON object for programs."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from quire_engine.fetch.manifest import PlanSummary
from quire_engine.fetch.options import Price
from quire_engine.gpu_types import GPU_TYPES, GpuType
from quire_engine.memory_plan import MemoryPlan, plan_rows


@dataclass(frozen=True)
class PlanPage:
    """A plan and what is told beside it."""

    model: str
    commit: str
    bytes_total: int
    plan: MemoryPlan
    gpu: GpuType | None  # the one that is planned for, where it was named
    on_gpus: tuple[tuple[GpuType, MemoryPlan], ...]  # each known type with these flags
    price: Price | None

    def as_text(self) -> str:
        """A line for each figure."""
        return "".join(f"{name:<24}{value}\n" for name, value in self._rows())

    def as_json(self) -> str:
        """One object with every figure."""
        fields = {
            "commit": self.commit,
            "bytesTotal": self.bytes_total,
            "plan": {
                **_figures(self.plan),
                "gpu": None if self.gpu is None else self.gpu.name,
                "gpuTypes": [_figures_on(gpu, plan) for gpu, plan in self.on_gpus],
                "costPerMillionTokens": None
                if self.price is None
                else self.price.per_million_tokens,
            },
        }
        return msgspec.json.format(msgspec.json.encode(fields)).decode() + "\n"

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "model", self.model
        if self.gpu is not None:
            yield "GPU", self.gpu.name
        yield from plan_rows(self.plan)
        each = f", each of {self.plan.num_gpus}" if self.plan.num_gpus > 1 else ""
        heading = f"GPUs that fit{each}"
        for gpu, plan in self.on_gpus:
            if plan.fits:
                yield heading, f"{gpu.name:<14} {_held(plan)}"
                heading = ""
        if heading:
            yield heading, f"none of {len(GPU_TYPES)} known types with these flags"
        if self.price is not None:
            yield "cost", self.price.told


def summary_of(plan: MemoryPlan) -> PlanSummary:
    """The part of it that travels in messages."""
    return PlanSummary(
        weight_bytes=plan.weight_bytes,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        max_model_len=plan.max_model_len,
        required_bytes=plan.required_bytes,
        kv_blocks=plan.num_blocks,
        max_concurrency=plan.max_concurrency,
    )


def _held(plan: MemoryPlan) -> str:
    return f"context {plan.max_model_len:>9,} tokens, {plan.max_concurrency:>9,.2f} at once"


def _figures_on(gpu: GpuType, plan: MemoryPlan) -> dict[str, object]:
    return {
        "name": gpu.name,
        "memoryBytes": gpu.memory_bytes,
        "fits": plan.fits,
        "maxModelLen": plan.max_model_len if plan.fits else None,
        "maxConcurrency": plan.max_concurrency if plan.fits else None,
    }


def _figures(plan: MemoryPlan) -> dict[str, object]:
    return {
        "device": plan.device,
        "gpus": plan.num_gpus,
        "parameters": plan.parameters,
        "weightDtype": plan.weight_dtype,
        "adapterBytes": plan.adapter_bytes,
        **msgspec.to_builtins(summary_of(plan)),
        "activationBytes": plan.activation_bytes,
        "tableBytes": plan.table_bytes,
        "runtimeBytes": plan.runtime_bytes,
        "blockSize": plan.block_size,
        "maxNumSeqs": plan.max_num_seqs,
        "maxNumBatchedTokens": plan.max_num_batched_tokens,
        "memoryBytes": plan.memory_bytes,
        "usableBytes": plan.usable_bytes,
        "largestModelLen": plan.largest_model_len,
        "fits": plan.fits,
        "refusal": plan.refusal,
    }
