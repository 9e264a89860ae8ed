"""What a model needs of memory, from headers alone."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_cluster.hub import Faults, running_mirror
from quire_cluster.tiny_models import TinyModel, write_tiny_model
from quire_engine.config import EngineConfig, token_budget
from quire_engine.errors import ModelCorrupt, ModelMissing
from quire_engine.fetch import PlanOptions, SourceOptions, run_plan
from quire_engine.fetch.headers import read_local
from quire_engine.fetch.plan_command import limits_of, read_facts
from quire_engine.memory_plan import (
    PlanLimits,
    TensorFacts,
    WeightFacts,
    activation_bytes,
    kv_bytes_per_token,
    make_plan,
    num_blocks,
    parse_bytes,
    refusal,
)
from quire_engine.models.config import from_hugging_face

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
LLAMA_8B_WEIGHTS = WeightFacts(8_030_261_248, 16_060_522_496, "bfloat16")


def test_llama_3_1_8b_keeps_128_kib_a_token() -> None:
    """32 layers · 8 heads · 128 · K and V · 2 bytes, as its model card's arithmetic has it."""
    assert kv_bytes_per_token(LLAMA_8B, "bfloat16") == 131_072
    assert kv_bytes_per_token(LLAMA_8B, "float32") == 262_144


def test_a_fit_says_how_much_fits() -> None:
    plan = make_plan(LLAMA_8B, LLAMA_8B_WEIGHTS, PlanLimits(memory_bytes=72 * GIB))
    assert plan.fits is True
    assert refusal(plan) is None
    assert plan.num_blocks is not None
    left = 72 * GIB - plan.weight_bytes - plan.activation_bytes
    assert plan.num_blocks == left // (16 * 131_072)
    assert plan.max_concurrency == pytest.approx(plan.num_blocks / 8192, abs=0.01)


def test_a_refusal_names_the_largest_context_that_fits() -> None:
    limits = PlanLimits(memory_bytes=20 * GIB)
    plan = make_plan(LLAMA_8B, LLAMA_8B_WEIGHTS, limits)
    assert plan.fits is False
    assert plan.largest_model_len is not None
    reason = refusal(plan)
    assert reason is not None
    assert "20.0 GiB" in reason
    assert f"{plan.largest_model_len:,}" in reason
    smaller = PlanLimits(memory_bytes=20 * GIB, max_model_len=plan.largest_model_len)
    assert make_plan(LLAMA_8B, LLAMA_8B_WEIGHTS, smaller).fits is True
    larger = PlanLimits(memory_bytes=20 * GIB, max_model_len=plan.largest_model_len + 1)
    assert make_plan(LLAMA_8B, LLAMA_8B_WEIGHTS, larger).fits is False


def test_weights_alone_too_large() -> None:
    plan = make_plan(LLAMA_8B, LLAMA_8B_WEIGHTS, PlanLimits(memory_bytes=8 * GIB))
    assert plan.largest_model_len == 0
    assert "larger device" in (refusal(plan) or "")


def test_unknown_memory_refuses_nothing() -> None:
    plan = make_plan(LLAMA_8B, LLAMA_8B_WEIGHTS, PlanLimits())
    assert plan.fits is None
    assert refusal(plan) is None


@given(
    memory=st.integers(0, 100 * GIB),
    context=st.integers(1, 131072),
    block_size=st.sampled_from([8, 16, 32]),
)
def test_what_fits_is_what_the_blocks_hold(memory: int, context: int, block_size: int) -> None:
    limits = PlanLimits(memory_bytes=memory, max_model_len=context, block_size=block_size)
    plan = make_plan(LLAMA_8B, LLAMA_8B_WEIGHTS, limits)
    assert plan.num_blocks is not None
    assert plan.fits == (plan.num_blocks * block_size >= context)
    used = plan.num_blocks * block_size * plan.kv_bytes_per_token
    fixed = plan.weight_bytes + plan.activation_bytes
    assert plan.num_blocks == 0 or used + fixed <= memory


@given(st.integers(1, 8192), st.integers(1, 8192), st.integers(1, 256))
def test_activations_grow_with_the_budget(one: int, other: int, seqs: int) -> None:
    small, large = sorted((one, other))
    assert activation_bytes(LLAMA_8B, "bfloat16", small, seqs) <= activation_bytes(
        LLAMA_8B, "bfloat16", large, seqs
    )


def test_no_memory_no_blocks() -> None:
    assert num_blocks(-5, 100, 16) == 0


def test_what_is_not_loaded_does_not_count() -> None:
    config = from_hugging_face(TinyModel().config() | {"tie_word_embeddings": True})
    tensors = [
        TensorFacts("model.embed_tokens.weight", "BF16", 100, 200),
        TensorFacts("lm_head.weight", "BF16", 100, 200),
        TensorFacts("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 4, 16),
    ]
    assert WeightFacts.of(tensors, config) == WeightFacts(100, 200, "bfloat16")


def test_quantized_weights_are_unpacked() -> None:
    tensors = [TensorFacts("blk.0.ffn_up.weight", "Q4_1", 320, 200)]
    assert WeightFacts.of(tensors, LLAMA_8B) == WeightFacts(320, 640, "Q4_1")


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_folder_is_counted_to_the_byte(tmp_path: Path, num_shards: int) -> None:
    facts = read_local(write_tiny_model(tmp_path, num_shards=num_shards))
    expected = sum(math.prod(shape) for shape in TinyModel().shapes().values())
    assert facts.weights == WeightFacts(expected, 2 * expected, "bfloat16")


def test_headers_longer_than_the_first_read(tmp_path: Path) -> None:
    model = TinyModel(num_layers=150, hidden_size=16, intermediate_size=16, vocab_size=16)
    facts = read_local(write_tiny_model(tmp_path, model))
    assert facts.weights.parameters == model.parameters


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        read_local(tmp_path)


def test_a_cut_header(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelCorrupt):
        read_local(tmp_path)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_remote_model_by_its_headers_alone(tmp_path: Path, num_shards: int) -> None:
    folder = write_tiny_model(tmp_path / "org/tiny", num_shards=num_shards)
    with running_mirror(tmp_path) as mirror:
        mirror.faults(Faults(status=500, times=1))
        source = SourceOptions(endpoint=mirror.url, backoff_seconds=0.001)
        assert read_facts(PlanOptions("hf://org/tiny", source=source)) == read_local(folder)
        weights = sum(entry.bytes for entry in mirror.downloads(".safetensors"))
    assert weights <= num_shards * 64 * 1024


@pytest.mark.parametrize("config", ["{", "[]", '{"architectures": ["LlamaForCausalLM"]}'])
def test_a_config_without_the_shapes(tmp_path: Path, config: str) -> None:
    folder = write_tiny_model(tmp_path / "org/tiny")
    (folder / "config.json").write_text(config)
    with running_mirror(tmp_path) as mirror:
        source = SourceOptions(endpoint=mirror.url, backoff_seconds=0.001)
        for model in (str(folder), "hf://org/tiny"):
            with pytest.raises(ModelCorrupt, match=f"got that of {model}"):
                read_facts(PlanOptions(model, source=source))


def test_the_command_prints_and_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = str(write_tiny_model(tmp_path))
    assert run_plan(PlanOptions(folder)) == 0
    assert "weights" in capfd.readouterr().out
    assert run_plan(PlanOptions(folder, gpu_memory_bytes=1000, as_json=True)) == 2
    said = capfd.readouterr()
    assert json.loads(said.out)["fits"] is False
    assert said.err.startswith("quire-engine: ")
    assert run_plan(PlanOptions(folder, dtype="int3")) == 2
    assert run_plan(PlanOptions(str(tmp_path / "nowhere"))) == 66


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_plans_limits_are_the_engines_own(device: str) -> None:
    given = EngineConfig(model="m")
    budget = token_budget(device, given.max_num_batched_tokens, given.max_num_seqs)
    options = PlanOptions("m", device=device, gpu_memory_bytes=GIB)  # type: ignore[arg-type]
    assert limits_of(options) == PlanLimits(
        dtype=given.dtype,
        compute_dtype={"cpu": "float32", "cuda": "auto"}[device],
        max_model_len=given.max_model_len,
        max_num_batched_tokens=budget,
        max_num_seqs=given.max_num_seqs,
        block_size=given.block_size,
        memory_bytes=int(GIB * given.gpu_memory_utilization),
    )


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("24GiB", 24 * GIB), ("24Gi", 24 * GIB), ("1.5G", 1_500_000_000), ("80 GB", 80 * 10**9),
     ("512", 512), ("64Mi", 64 << 20)],
)  # fmt: skip
def test_quantities(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "lots", "24 apples", "-1Gi", "1e9", "Gi"])
def test_bad_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="24GiB"):
        parse_bytes(text)


@pytest.mark.model
def test_the_real_model_as_safetensors_and_as_gguf() -> None:
    from quire_cluster.model import GGUF_NAME, NAME, ORGANIZATION, prepare_model

    paths = prepare_model()
    begin = time.monotonic()
    local = read_local(paths.safetensors)
    assert time.monotonic() - begin < 1
    assert local.weights == WeightFacts(134_515_008, 269_030_016, "bfloat16")
    gguf = read_local(paths.gguf)
    assert gguf.weights.parameters == local.weights.parameters
    with running_mirror(paths.hub) as mirror:
        source = SourceOptions(endpoint=mirror.url)
        uri = f"hf://{ORGANIZATION}/{NAME}-GGUF/{GGUF_NAME}"
        assert read_facts(PlanOptions(uri, source=source)) == gguf
        assert sum(entry.bytes for entry in mirror.downloads()) < 10_000_000


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
