"""What the engine's memory plan is asked for, and what follows from its answer. Pure.

`fit.py` says when it is asked; here are the question (which model, which flags, how much memory)
and the key by which an answer is known to be one to this question.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import msgspec

from quire_operator import names
from quire_operator.api import PlanStatus, Spec, Status
from quire_operator.kinds import Manifest
from quire_operator.values import quantity
from quire_operator.views import GpuNode

MEBIBYTE = 1024**2
GIBIBYTE = 1024**3
SPARE = 0.10
"""Of a claim, beyond the files: what a file system keeps for itself (ext4 5 % and its inodes)."""
METADATA_BYTES = 64 * MEBIBYTE
"""Of a claim: manifest, part tables and a small file system's journal. Staging takes nothing of its
own, as its files are linked into place."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one GPU of a replica has, or the container of one that runs on the CPU."""

    num_bytes: int | None
    """None where nobody knows."""
    on_gpu: bool
    unknown: str = ""
    """Why nobody knows, and what would help."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to `quire-engine plan`."""

    content: str
    """Ten hex digits of what the spec alone decides: model, flags and given memory."""
    memory: Memory

    @property
    def key(self) -> str:
        """By which an answer is known to be one to this question. Never the image: an upgrade asks
        nothing."""
        return f"{self.content}.{self.memory.num_bytes or 0}"


def content_of(key: str) -> str:
    """The part of a request's key that the spec alone decides."""
    return key.partition(".")[0]


def stored(service: Status, spec: Spec) -> PlanStatus | None:
    """The answer in status, if it is of what the spec asks for; for whatever memory."""
    plan = service.plan
    if plan is None or plan.key is None:
        return None
    return plan if content_of(plan.key) == content(spec) else None


def request(spec: Spec, template: Manifest, nodes: tuple[GpuNode, ...]) -> Request:
    """The question for a spec, whose pods are made of `template` and may go to these nodes."""
    return Request(content(spec), memory(spec, template, nodes))


def content(spec: Spec) -> str:
    """`Request.content`. Defaults are left out: a new field with one changes no key."""
    engine, resources = msgspec.to_builtins(spec.engine), msgspec.to_builtins(spec.resources)
    engine.pop("image", None)
    resources.pop("cpu", None)
    parts = [spec.model.uri, spec.model.revision, engine, resources]
    if spec.model.adapters:
        parts.append(msgspec.to_builtins(spec.model.adapters))
    return names.digest(msgspec.json.encode(parts, order="sorted").decode(), 10)


def runs_on_gpu(spec: Spec) -> bool:
    """Whether the engine is told to run on a GPU; of two --device the last one wins."""
    device = "cuda" if spec.resources.gpus else "cpu"
    extra = [part for argument in spec.engine.extra_args for part in argument.split("=", 1)]
    for flag, value in itertools.pairwise(extra):
        device = value if flag == "--device" else device
    return device == "cuda"


def asks_nodes(spec: Spec) -> bool:
    """Whether the nodes' labels say how much memory there is."""
    return runs_on_gpu(spec) and spec.resources.gpu_memory is None


def memory_label(spec: Spec) -> str:
    """A node's label that says a GPU's memory in MiB, as NVIDIA's feature discovery writes it:
    nvidia.com/gpu.memory, for a MIG slice nvidia.com/mig-1g.10gb.memory."""
    return f"{spec.resources.gpu_resource}.memory"


def memory(spec: Spec, template: Manifest, nodes: tuple[GpuNode, ...]) -> Memory:
    """Of a GPU: as given, else the most that a node has to which the pod may go."""
    if not runs_on_gpu(spec):
        return _limit(template)
    given = spec.resources.gpu_memory
    if given is not None:
        return Memory(_bytes(given), on_gpu=True)
    selector = template["spec"].get("nodeSelector") or {}
    fitting = [node for node in nodes if selector.items() <= node.labels.items()]
    most = max((node.mebibytes for node in fitting), default=None)
    if most is not None:
        return Memory(most * MEBIBYTE, on_gpu=True)
    words = (
        "resources.gpuMemory is not set, and no node that the pod may run on is known to tell it "
        f"(label {memory_label(spec)}): nothing is checked"
    )
    return Memory(None, on_gpu=True, unknown=words)


def _limit(template: Manifest) -> Memory:
    containers = template["spec"]["containers"]
    engine = next(c for c in containers if c["name"] == names.ENGINE_CONTAINER)
    limit = ((engine.get("resources") or {}).get("limits") or {}).get("memory")
    if limit is None:
        return Memory(None, on_gpu=False, unknown="resources.memory is not set: nothing is checked")
    return Memory(_bytes(limit), on_gpu=False)


def _bytes(value: object) -> int | None:
    number = quantity(value)
    return int(number) if number else None


def claim_size(bytes_total: int) -> str:
    """The claim for so many bytes of files: whole GiB, as disks of clouds come in them, and smaller
    ones are too small for some file systems (XFS wants 300 MB)."""
    return f"{math.ceil((bytes_total * (1 + SPARE) + METADATA_BYTES) / GIBIBYTE)}Gi"
