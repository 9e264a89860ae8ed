"""`spec.engine` and `spec.resources`: how a replica runs, and what it takes."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from quire_operator.api.parts import Part, QuantityField


class Engine(Part, frozen=True):
    """Flags of the engine. What is unset is decided by it. Any change makes a new revision."""

    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        Meta(
            description="Number format of weights and activations. Unset: auto, the engine decides."
        ),
    ] = None
    quantization: Annotated[
        Literal["int8", "int4"] | None,
        Meta(
            description="What float weights are rounded to while they are loaded: int8 halves the "
            "bytes of bfloat16, int4 takes a third of them and costs answers more. On the CPU only "
            "(resources.gpus 0); a GGUF that is quantized already is refused. Unset: the weights "
            "stay as they are stored.",
        ),
    ] = None
    max_model_len: Annotated[
        Annotated[int, Meta(ge=1, le=16_777_216)] | None,
        Meta(
            description="Longest sequence, prompt and answer, in tokens. Unset: the model's "
            "own limit. Lower it when the cache does not fit.",
        ),
    ] = None
    max_num_seqs: Annotated[
        Annotated[int, Meta(ge=1, le=65_536)] | None,
        Meta(description="Most requests that run in one step. Unset: the engine decides."),
    ] = None
    max_batched_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=16_777_216)] | None,
        Meta(
            description="Token budget of one step: longer prompts are cut into chunks of it. "
            "Unset: the engine decides.",
        ),
    ] = None
    gpu_memory_utilization: Annotated[
        Annotated[float, Meta(ge=0.05, le=1.0)] | None,
        Meta(
            description="Part of the GPU's memory, 0.05 to 1, that weights and cache may take. "
            "Unset: the engine decides.",
        ),
    ] = None
    tensor_parallel: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None,
        Meta(description="GPUs over which one replica is split. Unset: 1."),
    ] = None
    prefix_caching: Annotated[
        bool | None,
        Meta(
            description="Keep and reuse the cache of shared prompt beginnings. Unset: the "
            "engine decides (on)."
        ),
    ] = None
    extra_args: Annotated[
        list[Annotated[str, Meta(max_length=1024)]],
        Meta(
            max_length=64,
            description="Further arguments of `quire-engine serve`, one a list item, put last "
            "so that they win.",
        ),
    ] = field(default_factory=list)
    image: Annotated[
        Annotated[str, Meta(min_length=1, max_length=512)] | None,
        Meta(
            description="Engine image. Unset: the operator's default at the time the revision "
            "is made; a later upgrade of the operator does not move a running "
            "revision.",
        ),
    ] = None


class Resources(Part, frozen=True):
    """What one replica takes."""

    gpus: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="GPUs of one replica. Default 1. 0 runs on the CPU (`--device cpu`); "
            "with more, a pod that finds no CUDA device fails and says so.",
        ),
    ] = 1
    gpu_resource: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=253,
            description="Extended resource that counts GPUs. Default nvidia.com/gpu; another "
            "for MIG slices or another vendor.",
        ),
    ] = "nvidia.com/gpu"
    gpu_memory: Annotated[
        QuantityField | None,
        Meta(
            description="Memory of each GPU, such as 24Gi: a model that does not fit into it is "
            "refused before anything is fetched (condition Fits). Unset: the largest that a node "
            "label `<gpuResource>.memory` tells of the nodes that the pod may run on; nothing is "
            "refused where there is none. A change moves no running revision.",
        ),
    ] = None
    cpu: Annotated[
        QuantityField | None,
        Meta(
            description="CPU of one replica, request and limit (the engine takes as many "
            "threads as the limit gives). Unset: neither.",
        ),
    ] = None
    memory: Annotated[
        QuantityField | None,
        Meta(
            description="Memory of one replica, request and limit. Unset: neither. With gpus 0 a "
            "model that does not fit into it is refused before anything is fetched (condition "
            "Fits). A replica above it is OOMKilled, and Ready says so with the limit.",
        ),
    ] = None
