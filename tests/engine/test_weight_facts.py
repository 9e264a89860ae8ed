"""What a model's weights take, from the names and formats that its files list."""

import math
from dataclasses import replace

import pytest

from quire_cluster.tiny_models import TinyModel
from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError, ModelUnsupported
from quire_engine.models.config import ModelConfig, from_hugging_face
from quire_engine.models.shapes import expected_shapes
from quire_engine.weight_facts import (
    TensorFacts,
    WeightFacts,
    part_of,
    require_quantizable,
    weight_bytes,
    weight_dtype,
)

TINY = from_hugging_face(TinyModel().config())


def tensors_of(model: ModelConfig, dtype: str = "BF16", size: int = 2) -> list[TensorFacts]:
    shapes = expected_shapes(model).items()
    return [
        TensorFacts(name, dtype, math.prod(shape), math.prod(shape) * size)
        for name, shape in shapes
    ]


def facts_of(model: ModelConfig, dtype: str = "BF16") -> WeightFacts:
    return WeightFacts.of(tensors_of(model, dtype), model)


def bytes_of(model: ModelConfig, stored: str, device: str, dtype: str = "auto") -> int:
    engine = EngineConfig(model="m", dtype=dtype)  # type: ignore[arg-type]
    return weight_bytes(model, facts_of(model, stored), engine, device)  # type: ignore[arg-type]


def test_what_is_not_loaded_does_not_count() -> None:
    tied = replace(TINY, tie_word_embeddings=True)
    derived = [
        TensorFacts("lm_head.weight", "BF16", 100, 200),
        TensorFacts("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 4, 16),
        TensorFacts("rope_freqs.weight", "F32", 4, 16),
    ]
    assert WeightFacts.of([*tensors_of(tied), *derived], tied) == facts_of(tied)


def test_weights_of_another_model_are_refused_before_they_are_fetched() -> None:
    with pytest.raises(ModelUnsupported, match=r"1 missing \(model.norm.weight\)"):
        WeightFacts.of([t for t in tensors_of(TINY) if t.name != "model.norm.weight"], TINY)
    with pytest.raises(ModelUnsupported, match=r"1 unknown \(model.extra\)"):
        WeightFacts.of([*tensors_of(TINY), TensorFacts("model.extra", "BF16", 1, 2)], TINY)
    with pytest.raises(ModelUnsupported, match="must have the shape"):
        WeightFacts.of(tensors_of(replace(TINY, vocab_size=999)), TINY)


def test_the_format_of_most_bytes_names_the_weights() -> None:
    tensors = tensors_of(TINY, "Q4_1")
    tensors[0] = replace(tensors[0], dtype="F32", num_bytes=1)
    facts = WeightFacts.of(tensors, TINY)
    assert facts.dtype == "Q4_1"
    assert weight_dtype(facts, EngineConfig(model="m"), "cpu") == "Q4_1"
    assert weight_dtype(facts, EngineConfig(model="m"), "cuda") == "bfloat16"
    assert weight_dtype(facts, EngineConfig(model="m", dtype="bfloat16"), "cpu") == "bfloat16"


@pytest.mark.parametrize(
    ("stored", "device", "dtype", "matrix_bytes", "vector_bytes"),
    [
        ("BF16", "cuda", "auto", 2, 2),
        ("F32", "cuda", "auto", 2, 2),
        ("BF16", "cuda", "float32", 4, 4),
        ("BF16", "cpu", "auto", 2, 4),
        ("BF16", "cpu", "float32", 2, 4),  # widened in registers
        ("F16", "cpu", "auto", 2, 4),
        ("F32", "cpu", "auto", 4, 4),
        ("F32", "cpu", "bfloat16", 2, 4),
        ("Q4_1", "cpu", "auto", 20 / 32, 4),  # kept packed
        ("Q4_1", "cpu", "bfloat16", 2, 4),
        ("Q4_1", "cuda", "auto", 2, 2),
    ],
)
def test_bytes_by_format_and_device(
    stored: str, device: str, dtype: str, matrix_bytes: float, vector_bytes: int
) -> None:
    shapes = expected_shapes(TINY).values()
    matrix_values = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    vector_values = sum(shape[0] for shape in shapes if len(shape) == 1)
    expected = matrix_values * matrix_bytes + vector_values * vector_bytes
    assert bytes_of(TINY, stored, device, dtype) == expected


@pytest.mark.parametrize("stored", ["F32", "BF16", "F16"])
def test_int8_is_a_byte_a_value_and_two_for_each_64_of_a_row(stored: str) -> None:
    engine = EngineConfig(model="m", quantization="int8")
    facts = facts_of(TINY, stored)
    shapes = expected_shapes(TINY).values()
    values = sum(rows * columns for rows, columns in (s for s in shapes if len(s) == 2))
    scales = sum(rows * -(-columns // 64) for rows, columns in (s for s in shapes if len(s) == 2))
    vectors = sum(shape[0] for shape in shapes if len(shape) == 1)
    expected = values + 2 * scales + 4 * vectors
    assert weight_bytes(TINY, facts, engine, "cpu") == expected
    assert weight_dtype(facts, engine, "cpu") == "int8"


def test_int4_is_half_a_byte_a_value_and_four_for_each_32_but_int8_outside_the_layers() -> None:
    engine = EngineConfig(model="m", quantization="int4")
    facts = facts_of(TINY, "BF16")
    shapes = expected_shapes(TINY)
    expected = 0
    for name, shape in shapes.items():
        if len(shape) == 1:
            expected += 4 * shape[0]
            continue
        rows, columns = shape
        if name.startswith("model.layers."):
            expected += rows * columns // 2 + 4 * rows * -(-columns // 32)
        else:
            expected += rows * columns + 2 * rows * -(-columns // 64)
    assert weight_bytes(TINY, facts, engine, "cpu") == expected
    assert weight_dtype(facts, engine, "cpu") == "int4"


def test_what_cannot_be_quantized_is_said() -> None:
    engine = EngineConfig(model="m", quantization="int8")
    with pytest.raises(ConfigError, match="int8 must run on a CPU, got device cuda; leave out"):
        require_quantizable(TINY, facts_of(TINY), engine, "cuda")
    tensors = tensors_of(TINY)
    tensors[0] = replace(tensors[0], dtype="Q8_0")
    with pytest.raises(ModelUnsupported, match=r"got Q8_0 for model\.embed_tokens"):
        require_quantizable(TINY, WeightFacts.of(tensors, TINY), engine, "cpu")
    require_quantizable(TINY, facts_of(TINY), engine, "cpu")
    require_quantizable(TINY, facts_of(TINY, "Q4_1"), EngineConfig(model="m"), "cuda")


def test_the_last_panel_of_a_cpus_matrix_is_full() -> None:
    odd = replace(TINY, vocab_size=TINY.vocab_size + 1)
    more = 15 * TINY.hidden_size * 2 * 2  # embedding and head
    assert bytes_of(odd, "BF16", "cpu") - bytes_of(odd, "BF16", "cuda") > more
    assert bytes_of(odd, "BF16", "cpu") == bytes_of(
        replace(TINY, vocab_size=TINY.vocab_size + 16), "BF16", "cpu"
    )


def test_gpus_share_what_can_be_shared() -> None:
    """Llama 3.1 8B's shapes over 2, 8 and 16 GPUs, by hand: millions of values."""
    model = replace(
        TINY, vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_layers=32,
        num_heads=32, num_kv_heads=8, head_dim=128,
    )  # fmt: skip
    whole = bytes_of(model, "BF16", "cuda")
    assert whole == 16_060_522_496  # its model card's 8.03 billion parameters
    norms = 2 * 65 * 4096
    for num_gpus in (2, 8):
        part = bytes_of(part_of(model, num_gpus), "BF16", "cuda")
        assert part == norms + (whole - norms) // num_gpus
    kv_weights = 2 * 2 * 32 * 128 * 4096  # of one head: every second GPU has a copy
    assert bytes_of(part_of(model, 16), "BF16", "cuda") == (
        norms + (whole - norms - 8 * kv_weights) // 16 + kv_weights
    )
    assert part_of(model, 16).num_kv_heads == 1


@pytest.mark.parametrize(("heads", "kv_heads", "num_gpus"), [(9, 3, 2), (12, 3, 4), (8, 6, 4)])
def test_heads_that_gpus_cannot_share(heads: int, kv_heads: int, num_gpus: int) -> None:
    with pytest.raises(ConfigError, match=f"got {num_gpus}; change --tensor-parallel-size"):
        part_of(replace(TINY, num_heads=heads, num_kv_heads=kv_heads), num_gpus)
