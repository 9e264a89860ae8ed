"""What a model needs of a device's memory, before it is loaded. Arithmetic: no torch, no files.

    memory = weights + activations + blocks · block_size · kv_bytes_per_token

The weights are known to the byte from the files' headers. The activations are bounded because the
step's token budget and number of sequences are. What is left holds the KV cache: no profiling run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from quire_engine.models.config import ModelConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' and GGUF's


@dataclass(frozen=True)
class TensorFacts:
    """One stored tensor: name, format as the file calls it, number of values, bytes."""

    name: str
    dtype: str
    num_values: int
    num_bytes: int


@dataclass(frozen=True)
class WeightFacts:
    """All tensors that loading reads."""

    parameters: int
    weight_bytes: int  # in memory: quantized ones are unpacked to bfloat16 when they are loaded
    dtype: str  # the format that most stored bytes are in, e.g. bfloat16 or Q4_1

    @staticmethod
    def of(tensors: Iterable[TensorFacts], config: ModelConfig) -> "WeightFacts":
        """Sum up; a head that is tied to the embedding and rotary tables are not loaded."""
        loaded = [tensor for tensor in tensors if _is_loaded(tensor.name, config)]
        by_dtype: dict[str, int] = {}
        for tensor in loaded:
            by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.num_bytes
        largest = max(by_dtype, key=lambda dtype: by_dtype[dtype], default="F32")
        return WeightFacts(
            parameters=sum(tensor.num_values for tensor in loaded),
            weight_bytes=sum(_loaded_bytes(tensor) for tensor in loaded),
            dtype=FLOAT_NAMES.get(largest, largest),
        )

    def bytes_as(self, dtype: str) -> int:
        """Bytes of the weights once they are converted to `dtype`; auto keeps what is stored."""
        return self.weight_bytes if dtype == "auto" else self.parameters * DTYPE_BYTES[dtype]


@dataclass(frozen=True)
class PlanLimits:
    """The engine's settings that decide over memory."""

    dtype: str = "auto"  # weights
    compute_dtype: str = "auto"  # activations and KV cache; float32 on a CPU
    max_model_len: int | None = None  # tokens; None: the model's own limit
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 128
    block_size: int = 16  # tokens
    memory_bytes: int | None = None  # that the engine may hold; None: unknown


@dataclass(frozen=True)
class MemoryPlan:
    """The outcome. What depends on the device's memory is None while that is unknown."""

    parameters: int
    weight_bytes: int
    weight_dtype: str
    kv_bytes_per_token: int
    activation_bytes: int
    block_size: int
    max_model_len: int
    required_bytes: int  # to serve one sequence of max_model_len
    memory_bytes: int | None
    num_blocks: int | None
    max_concurrency: float | None  # sequences of max_model_len at once
    largest_model_len: int | None  # the longest context that fits; 0: not even the weights do

    @property
    def fits(self) -> bool | None:
        if self.memory_bytes is None:
            return None
        return self.required_bytes <= self.memory_bytes


def kv_bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """Keys and values of one token in all layers, kept as `dtype`."""
    return config.kv_bytes_per_token(DTYPE_BYTES[dtype])


def activation_bytes(
    config: ModelConfig, dtype: str, max_num_batched_tokens: int, max_num_seqs: int
) -> int:
    """A bound on a step's temporaries, whatever the batch is made of.

    A token keeps the residual and the normed hidden state, and beside them either fused QKV and
    attention's output or the fused gate-up and its product; a sequence has one row of float32
    logits, once as computed and once sorted for sampling.
    """
    heads = config.num_heads + 2 * config.num_kv_heads
    attention = (heads + config.num_heads) * config.head_dim
    feed_forward = 3 * config.intermediate_size
    token_values = 2 * config.hidden_size + max(attention, feed_forward)
    rows = min(max_num_seqs, max_num_batched_tokens)
    logits = rows * config.vocab_size * 4 * 2
    return max_num_batched_tokens * token_values * DTYPE_BYTES[dtype] + logits


def num_blocks(free_bytes: int, token_bytes: int, block_size: int) -> int:
    """KV cache blocks that fit into so many bytes."""
    return max(0, free_bytes) // (token_bytes * block_size)


def make_plan(config: ModelConfig, weights: WeightFacts, limits: PlanLimits) -> MemoryPlan:
    """The plan of this model under these limits. A context above the model's own is cut to it."""
    weight_bytes = weights.bytes_as(limits.dtype)
    compute = _float_dtype(limits.compute_dtype, limits.dtype, weights)
    token_bytes = kv_bytes_per_token(config, compute)
    temporaries = activation_bytes(
        config, compute, limits.max_num_batched_tokens, limits.max_num_seqs
    )
    fixed = weight_bytes + temporaries
    context = min(limits.max_model_len or config.max_model_len, config.max_model_len)
    blocks_each = -(-context // limits.block_size)
    blocks = concurrency = largest = None
    if limits.memory_bytes is not None:
        blocks = num_blocks(limits.memory_bytes - fixed, token_bytes, limits.block_size)
        concurrency = round(blocks / blocks_each, 2)
        largest = min(blocks * limits.block_size, config.max_model_len)
    return MemoryPlan(
        parameters=weights.parameters,
        weight_bytes=weight_bytes,
        weight_dtype=weights.dtype if limits.dtype == "auto" else limits.dtype,
        kv_bytes_per_token=token_bytes,
        activation_bytes=temporaries,
        block_size=limits.block_size,
        max_model_len=context,
        required_bytes=fixed + blocks_each * limits.block_size * token_bytes,
        memory_bytes=limits.memory_bytes,
        num_blocks=blocks,
        max_concurrency=concurrency,
        largest_model_len=largest,
    )


def refusal(plan: MemoryPlan) -> str | None:
    """Why the plan does not fit, in numbers, and what would; None if it fits or nobody knows."""
    if plan.fits is not False or plan.memory_bytes is None:
        return None
    rule = (
        f"the model must fit the memory that the engine may hold: it needs "
        f"{gibibytes(plan.required_bytes)} for a context of {plan.max_model_len:,}, "
        f"got {gibibytes(plan.memory_bytes)}"
    )
    if plan.largest_model_len:
        return f"{rule}; the largest context that fits is {plan.largest_model_len:,}"
    fixed = gibibytes(plan.weight_bytes + plan.activation_bytes)
    return f"{rule}; weights and activations alone take {fixed}: take a larger device"


def gibibytes(num_bytes: int) -> str:
    """For people: 16.0 GiB; below one GiB in MiB."""
    if num_bytes >= 1024**3:
        return f"{num_bytes / 1024**3:,.1f} GiB"
    return f"{num_bytes / 1024**2:,.1f} MiB"


def parse_bytes(text: str) -> int:
    """A quantity as Kubernetes writes them: 24GiB, 24Gi, 24GB, 24G or plain bytes. ValueError."""
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    units |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
    stripped = text.strip().lower().removesuffix("b")
    digits = stripped.rstrip("kmgti")
    unit = units.get(stripped[len(digits) :])
    if unit is None or not digits.strip().replace(".", "", 1).isdigit():
        raise ValueError(f"memory must be a number with a unit such as 24GiB or 24Gi, got {text!r}")
    return int(float(digits) * unit)


def _is_loaded(name: str, config: ModelConfig) -> bool:
    if name.endswith("inv_freq") or name == "rope_freqs.weight":
        return False
    return not (config.tie_word_embeddings and name == "lm_head.weight")


def _loaded_bytes(tensor: TensorFacts) -> int:
    if tensor.dtype in FLOAT_NAMES:
        return tensor.num_bytes
    return tensor.num_values * DTYPE_BYTES["bfloat16"]


def _float_dtype(compute_dtype: str, dtype: str, weights: WeightFacts) -> str:
    """auto: as the weights, and bfloat16 for quantized ones."""
    chosen = next((name for name in (compute_dtype, dtype) if name != "auto"), weights.dtype)
    return chosen if chosen in DTYPE_BYTES else "bfloat16"
