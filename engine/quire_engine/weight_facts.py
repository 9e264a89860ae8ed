"""A model's weights as its files list them, and the bytes that they take once loaded. Pure.

The loader keeps one packed matrix for query, key and value, one for gate and up, and vectors in the
activations' format; `weight_bytes` counts what it makes of the stored tensors, to the byte. Over
several GPUs (`part_of`) a GPU holds

- its share of the query heads and of the feed-forward's inner features: rows of QKV and gate-up,
  columns of the output and down projections, their products summed over the GPUs;
- its share of the key-value heads, at least one: with more GPUs than those heads, each is kept by
  several GPUs, weights and cache;
- its share of the vocabulary, rounded up, of embedding and head;
- norms whole.

This is Megatron's split (arXiv 1909.08053), which vLLM has too.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from quire_engine.config import EngineConfig, Quantization
from quire_engine.errors import ConfigError, ModelUnsupported
from quire_engine.models.config import ModelConfig
from quire_engine.models.shapes import check_names, expected_shapes

DeviceKind: TypeAlias = Literal["cpu", "cuda"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' and GGUF's


@dataclass(frozen=True)
class Blocks:
    """A GGUF type's values once packed, and their bytes."""

    num_values: int
    num_bytes: int


# As the CPU kernels' panels have them: Q4_0 gets minimums, Q6_K a byte a value.
PACKED_BLOCKS = {
    "Q4_0": Blocks(32, 20),
    "Q4_1": Blocks(32, 20),
    "Q8_0": Blocks(32, 34),
    "Q4_K": Blocks(256, 148),
    "Q6_K": Blocks(256, 274),
}
PANEL_ROWS = 16  # the CPU kernels' panels: the last one is filled up with zeros
INT8_GROUP = 64  # int8 values of a row that share one bfloat16 scale
INT4_GROUP = 32  # int4 values of a row that share one, and a minimum


@dataclass(frozen=True)
class TensorFacts:
    """One stored tensor: Hugging Face name, format as the file calls it, values, bytes."""

    name: str
    dtype: str
    num_values: int
    num_bytes: int


@dataclass(frozen=True)
class WeightFacts:
    """All tensors that loading reads."""

    tensors: tuple[TensorFacts, ...]

    @staticmethod
    def of(tensors: Iterable[TensorFacts], model: ModelConfig) -> "WeightFacts":
        """What loading takes of the stored tensors. ModelUnsupported where they are not those that
        the config asks for."""
        by_name = {tensor.name: tensor for tensor in tensors}
        check_names(model, by_name.keys())
        shapes = expected_shapes(model)
        for name, shape in shapes.items():
            _check_size(by_name[name], shape)
        return WeightFacts(tuple(by_name[name] for name in shapes))

    @property
    def parameters(self) -> int:
        return sum(tensor.num_values for tensor in self.tensors)

    @property
    def dtype(self) -> str:
        """The format that most stored bytes are in, e.g. bfloat16 or Q4_1."""
        by_dtype: dict[str, int] = {}
        for tensor in self.tensors:
            by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.num_bytes
        largest = max(by_dtype, key=lambda dtype: by_dtype[dtype], default="F32")
        return FLOAT_NAMES.get(largest, largest)

    @property
    def stored(self) -> dict[str, str]:
        """Each tensor's format."""
        return {tensor.name: tensor.dtype for tensor in self.tensors}


@dataclass(frozen=True)
class Matrix:
    """A packed matrix, made of these tensors, one under the other."""

    names: tuple[str, ...]
    rows: int
    columns: int


def part_of(model: ModelConfig, num_gpus: int) -> ModelConfig:
    """What one of `num_gpus` GPUs has of the model. ConfigError where heads cannot be shared so."""
    heads, kv_heads = model.num_heads, model.num_kv_heads
    if heads % num_gpus or (kv_heads % num_gpus and num_gpus % kv_heads):
        raise ConfigError(
            f"tensor_parallel_size must divide the model's {heads} heads, and divide its "
            f"{kv_heads} key-value heads or be a multiple of them, got {num_gpus}; change "
            "--tensor-parallel-size"
        )
    return dataclasses.replace(
        model,
        num_heads=heads // num_gpus,
        num_kv_heads=max(1, kv_heads // num_gpus),
        intermediate_size=-(-model.intermediate_size // num_gpus),
        vocab_size=-(-model.vocab_size // num_gpus),
    )


def matrices(model: ModelConfig) -> Iterator[Matrix]:
    """The matrices that the loader packs."""
    hidden, inner = model.hidden_size, model.intermediate_size
    head_values = model.num_heads * model.head_dim
    qkv_rows = head_values + 2 * model.num_kv_heads * model.head_dim
    yield Matrix(("model.embed_tokens.weight",), model.vocab_size, hidden)
    if not model.tie_word_embeddings:
        yield Matrix(("lm_head.weight",), model.vocab_size, hidden)
    for number in range(model.num_layers):
        attention, mlp = f"model.layers.{number}.self_attn.", f"model.layers.{number}.mlp."
        qkv = tuple(f"{attention}{part}_proj.weight" for part in "qkv")
        yield Matrix(qkv, qkv_rows, hidden)
        yield Matrix((f"{attention}o_proj.weight",), hidden, head_values)
        yield Matrix((f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"), 2 * inner, hidden)
        yield Matrix((f"{mlp}down_proj.weight",), hidden, inner)


def weight_bytes(
    model: ModelConfig, weights: WeightFacts, engine: EngineConfig, device: DeviceKind
) -> int:
    """Bytes of all packed matrices and of the vectors. `model` is one GPU's part of it.

    float32 on a CPU is an upper bound: matrices whose values are all exact in bfloat16 (a
    checkpoint that was upcast) are kept so, which the headers do not tell.
    """
    stored = weights.stored
    packed = sum(
        matrix_bytes(matrix, [stored[name] for name in matrix.names], engine, device)
        for matrix in matrices(model)
    )
    return packed + vector_values(model) * DTYPE_BYTES[compute_dtype(engine, device)]


def matrix_bytes(
    matrix: Matrix, stored: Iterable[str], engine: EngineConfig, device: DeviceKind
) -> int:
    """One packed matrix of tensors stored in these formats."""
    rows = -(-matrix.rows // PANEL_ROWS) * PANEL_ROWS if device == "cpu" else matrix.rows
    method = quantization_of(matrix.names, engine.quantization)
    if method == "int8":
        scales = -(-matrix.columns // INT8_GROUP)
        return rows * (matrix.columns + scales * DTYPE_BYTES["bfloat16"])
    if method == "int4":
        scales_and_minimums = 2 * -(-matrix.columns // INT4_GROUP)
        pairs = rows // 2  # of values, in a byte
        return pairs * matrix.columns + rows * scales_and_minimums * DTYPE_BYTES["bfloat16"]
    dtypes = {_loaded_dtype(dtype, engine, device) for dtype in stored}
    if len(dtypes) == 1 and (blocks := PACKED_BLOCKS.get(min(dtypes))) is not None:
        return rows * matrix.columns // blocks.num_values * blocks.num_bytes
    dtypes = {dtype if dtype in DTYPE_BYTES else "bfloat16" for dtype in dtypes}
    # what bfloat16 and float16 have in common is float32
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    return rows * matrix.columns * DTYPE_BYTES[dtype]


def quantization_of(names: Iterable[str], wanted: Quantization | None) -> Quantization | None:
    """What the matrix of these tensors is rounded to. int4 leaves embedding and head in int8: they
    alone turn tokens to numbers and back, and each of their rows stands for one token."""
    if wanted == "int4" and not all(name.startswith("model.layers.") for name in names):
        return "int8"
    return wanted


def require_quantizable(
    model: ModelConfig, weights: WeightFacts, engine: EngineConfig, device: DeviceKind
) -> None:
    """ConfigError where these weights cannot be quantized as the engine is told to."""
    method = engine.quantization
    if method is None:
        return
    if device != "cpu":
        raise ConfigError(
            f"quantization {method} must run on a CPU, got device {device}; leave out "
            "--quantization, or add --device cpu"
        )
    stored = weights.stored
    for name in (name for matrix in matrices(model) for name in matrix.names):
        if stored[name] not in FLOAT_NAMES:
            raise ModelUnsupported(
                f"quantization {method} must start from float weights ({', '.join(FLOAT_NAMES)}), "
                f"got {stored[name]} for {name}; leave out --quantization, or take the model's "
                "float weights"
            )


def vector_values(model: ModelConfig) -> int:
    """Values of all norms and biases."""
    vectors = (shape[0] for shape in expected_shapes(model).values() if len(shape) == 1)
    return sum(vectors)


def compute_dtype(engine: EngineConfig, device: DeviceKind) -> str:
    """The format of activations, vectors and KV cache."""
    if device == "cpu":
        return "float32"
    return "bfloat16" if engine.dtype == "auto" else engine.dtype


def weight_dtype(weights: WeightFacts, engine: EngineConfig, device: DeviceKind) -> str:
    """What most of the matrices are kept as."""
    if engine.quantization is not None:
        return engine.quantization
    if engine.dtype != "auto" and not (device == "cpu" and engine.dtype == "float32"):
        return engine.dtype
    if device == "cpu" and weights.dtype in (*DTYPE_BYTES, *PACKED_BLOCKS):
        return weights.dtype
    return "bfloat16"


def _loaded_dtype(stored: str, engine: EngineConfig, device: DeviceKind) -> str:
    """The format of a tensor once loaded. On a CPU narrow values are widened in registers, so that
    neither auto nor float32 makes them larger; a GGUF's blocks stay what they are there, if all of
    a matrix are of one type, and become bfloat16 elsewhere."""
    if engine.dtype != "auto" and not (device == "cpu" and engine.dtype == "float32"):
        return engine.dtype
    if device == "cuda":
        return "bfloat16"
    return FLOAT_NAMES.get(stored, stored if stored in PACKED_BLOCKS else "bfloat16")


def _check_size(tensor: TensorFacts, shape: tuple[int, ...]) -> None:
    num_values = 1
    for size in shape:
        num_values *= size
    if tensor.num_values != num_values:
        raise ModelUnsupported(
            f"{tensor.name} must have the shape {shape} that the config says, got "
            f"{tensor.num_values:,} values; config and weights must come from one model"
        )
