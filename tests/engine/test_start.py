import hashlib
import shutil
import threading
from pathlib import Path

import msgspec
import pytest
import torch

from quire_engine import start
from quire_engine.adapter_loader import load_adapter
from quire_engine.config import EngineConfig, LoraModule
from quire_engine.errors import (
    AdapterUnusable,
    ConfigError,
    DoesNotFit,
    ModelCorrupt,
    ModelError,
    NoDevice,
)
from quire_engine.fetch.headers import read_local
from quire_engine.fetch.manifest import Manifest, ManifestFile
from quire_engine.fetch.options import PlanOptions
from quire_engine.fetch.plan_command import find, plan_of
from quire_engine.loader import load_model
from quire_engine.memory_plan import CPU_RUNTIME_BYTES, plan_rows
from quire_engine.messages import AddRequest, RequestId, SamplingParams

MIB = 1 << 20
GIB = 1 << 30
BYTES_PER_BLOCK = 3 * 2 * 2 * 16 * 4 * 16  # layers, keys and values, heads, head_dim, fp32, tokens


@pytest.fixture
def config(tiny_model):
    """Makes a config over one tiny model."""
    model = str(tiny_model("llama"))
    return lambda **fields: EngineConfig(
        **{"model": model, "kv_cache_memory_bytes": 1 << 20, "device": "cpu", **fields}
    )


def test_an_engine_starts_and_answers(config):
    engine, ready = start.start_engine(config())
    assert ready.num_blocks == (1 << 20) // BYTES_PER_BLOCK
    assert ready.max_num_batched_tokens == 512
    assert ready.dtype == "float32"
    engine.add_request(
        AddRequest(
            request_id=RequestId("r"),
            prompt_token_ids=(1, 2, 3),
            sampling=SamplingParams(temperature=0, max_tokens=3),
        )
    )
    tokens = []
    while engine.num_pending:
        tokens += [t for output in engine.step().outputs for t in output.token_ids]
    assert len(tokens) == 3
    engine.idle_report()


def test_the_start_does_what_the_plan_says(config, monkeypatch, caplog):
    """Blocks, context and bytes are those that `quire-engine plan` gives for the same memory."""
    for memory in (CPU_RUNTIME_BYTES + 256 * MIB, 100 * GIB):
        monkeypatch.setattr(start, "engine_memory_bytes", lambda memory=memory: memory)
        engine = config(kv_cache_memory_bytes=None)
        plan = plan_of(read_local(Path(engine.model)), engine, memory)
        with caplog.at_level("INFO"):
            _, ready = start.start_engine(engine)
        assert (ready.num_blocks, ready.max_model_len) == (plan.num_blocks, plan.max_model_len)
        assert ready.weight_bytes == plan.weight_bytes
        assert ready.kv_cache_bytes == plan.num_blocks * BYTES_PER_BLOCK <= 4 * GIB
        told = [record.getMessage() for record in caplog.records]
        assert f"plan KV cache blocks         {plan.num_blocks:,} of 16 tokens" in told
        assert {f"plan {name:<24}{value}" for name, value in plan_rows(plan)} <= set(told)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_weights_take_what_is_planned(config, tiny_model, stored, dtype):
    engine = config(model=str(tiny_model("qwen3", stored)), dtype=dtype)
    _, ready = start.start_engine(engine)
    plan = plan_of(read_local(Path(engine.model)), engine, None)
    assert ready.weight_bytes == plan.weight_bytes


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_dummy_weights_are_loaded_as_they_are_planned(config, tiny_model, stored):
    """Random ones are bfloat16, whatever the checkpoint's are."""
    engine = config(model=str(tiny_model("qwen3", stored)), load_format="dummy")
    _, ready = start.start_engine(engine)
    plan = plan_of(find(PlanOptions(engine.model, engine)).facts, engine, None)
    assert (plan.weight_bytes, plan.weight_dtype) == (ready.weight_bytes, ready.dtype)
    assert ready.dtype == "bfloat16"


def test_what_does_not_fit_is_refused_before_it_is_loaded(config, monkeypatch):
    monkeypatch.setattr(start, "engine_memory_bytes", lambda: 100 * MIB)
    monkeypatch.setattr(start, "load_model", None)
    with pytest.raises(DoesNotFit, match=r"the memory limit is 100\.0 MiB") as refused:
        start.start_engine(config(kv_cache_memory_bytes=None))
    assert (refused.value.exit_code, refused.value.reason) == (2, "DoesNotFit")


def test_more_gpus_than_are_built_are_refused(config):
    with pytest.raises(ConfigError, match="tensor_parallel_size must be 1"):
        start.start_engine(config(tensor_parallel_size=2))


def test_a_small_cache_bounds_the_context_unless_one_is_asked_for(config):
    _, ready = start.start_engine(config(num_gpu_blocks_override=4))
    assert ready.max_model_len == 64
    with pytest.raises(ConfigError, match=r"max_model_len must be <= 64 tokens .* got 100"):
        start.start_engine(config(num_gpu_blocks_override=4, max_model_len=100))


def test_int8_weights_are_planned_and_loaded(config):
    engine, ready = start.start_engine(config(quantization="int8"))
    plan = start.plan_memory(config(quantization="int8"), torch.device("cpu"))
    assert (ready.dtype, ready.weight_bytes) == ("int8", plan.weight_bytes)
    assert ready.weight_bytes < 0.3 * start.start_engine(config())[1].weight_bytes
    engine.idle_report()


def test_a_context_beyond_the_models_is_refused(config):
    with pytest.raises(ConfigError, match=r"max_model_len must be <= 256 .* got 1000000000000"):
        start.start_engine(config(max_model_len=1000000000000))
    _, ready = start.start_engine(config(max_model_len=256))
    assert ready.max_model_len == 256


def test_no_room_for_a_single_block_is_said(config):
    with pytest.raises(ConfigError, match=f"one block of {BYTES_PER_BLOCK} bytes, got room for 9"):
        start.start_engine(config(kv_cache_memory_bytes=9))


def test_a_gpu_that_is_not_there_is_said(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoDevice, match="--device cpu"):
        start.start_engine(config(device="cuda"))
    assert start.choose_device(config(device="auto")).type == "cpu"


def test_the_budget_has_a_token_for_each_sequence(config):
    def budget(**fields):
        return start.start_engine(config(**fields))[1].max_num_batched_tokens

    assert budget() == 512
    assert budget(max_num_seqs=600) == 600
    assert budget(max_num_seqs=4, max_num_batched_tokens=32) == 32


def answers(engine, requests):
    """The tokens that the engine gives to (name, adapter) pairs, all of them there at once."""
    for name, adapter in requests:
        engine.add_request(
            AddRequest(
                request_id=RequestId(name),
                prompt_token_ids=tuple(range(40)),
                sampling=SamplingParams(temperature=0, max_tokens=12),
                adapter=adapter,
            )
        )
    tokens = {name: [] for name, _ in requests}
    while engine.num_pending:
        for output in engine.step().outputs:
            tokens[output.request_id] += output.token_ids or [output.error]
    engine.idle_report()
    return tokens


@pytest.fixture
def adapted(config, make_adapter):
    """Makes a config of the tiny model with two adapters."""
    model = Path(config().model)
    modules = tuple(
        LoraModule(name, str(make_adapter(model, name, seed=seed, alpha=400)))
        for name, seed in (("one", 1), ("two", 2))
    )
    return lambda **fields: config(lora_modules=modules, **fields)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_adapters_answer_in_one_batch_as_they_do_alone(adapted, quantization):
    wanted = [("base", ""), ("first", "one"), ("again", "one"), ("second", "two")]
    together, _ = start.start_engine(adapted(quantization=quantization))
    mixed = answers(together, wanted)
    for name, adapter in wanted:
        alone, _ = start.start_engine(adapted(quantization=quantization))
        assert answers(alone, [(name, adapter)])[name] == mixed[name]
    assert mixed["first"] == mixed["again"]
    assert len({tuple(tokens) for tokens in mixed.values()}) == 3


def test_a_prefix_is_shared_under_one_adapter_only(adapted):
    engine, _ = start.start_engine(adapted())
    first = answers(engine, [("a", "one")])
    assert answers(engine, [("b", "two")])["b"] != first["a"]
    answers(engine, [("c", "")])
    assert engine.scheduler.counters.prefix_cache_hits == 0
    assert answers(engine, [("d", "one")])["d"] == first["a"]
    assert engine.scheduler.counters.prefix_cache_hits == 32


def test_the_stats_name_the_adapters_there_are(adapted):
    engine, _ = start.start_engine(adapted(max_num_seqs=1))
    for name, adapter in (("a", "two"), ("b", "one"), ("c", "")):
        engine.add_request(
            AddRequest(
                request_id=RequestId(name), prompt_token_ids=(1,), sampling=SamplingParams(),
                adapter=adapter,
            )
        )  # fmt: skip
    stats = engine.step().stats
    assert (stats.running_adapters, stats.waiting_adapters) == (("two",), ("one",))


def test_an_adapter_that_is_not_loaded_is_refused_alone(adapted):
    engine, _ = start.start_engine(adapted())
    [message] = answers(engine, [("a", "three")])["a"]
    assert message.startswith("adapter must be one that is loaded (one, two), got 'three'")


def test_adapters_take_what_is_planned(adapted, config, monkeypatch):
    """And leave as much less to the cache: plan and start count by one function."""
    monkeypatch.setattr(start, "engine_memory_bytes", lambda: CPU_RUNTIME_BYTES + 64 * MIB)
    engine = adapted(kv_cache_memory_bytes=None)
    plan = start.plan_memory(engine, torch.device("cpu"))
    told = find(PlanOptions(model=engine.model, engine=engine))
    memory = CPU_RUNTIME_BYTES + 64 * MIB
    assert plan == plan_of(told.facts, engine, memory, told.adapters)
    loaded = load_model(engine, torch.device("cpu"))
    adapters = [load_adapter(Path(m.path), loaded, None) for m in engine.lora_modules]
    assert plan.adapter_bytes == sum(adapter.nbytes for adapter in adapters) > 0
    bare = start.plan_memory(config(kv_cache_memory_bytes=None), torch.device("cpu"))
    assert bare.adapter_bytes == 0
    assert plan.fixed_bytes - bare.fixed_bytes >= plan.adapter_bytes
    _, ready = start.start_engine(engine)
    assert ready.num_blocks == plan.num_blocks < bare.num_blocks


def test_an_adapter_is_held_against_its_manifest(config, fetched_model, make_adapter, tmp_path):
    """Equal size, another byte: found by the hash before anything is served."""
    own = make_adapter(fetched_model, "own")
    fetched = tmp_path / "adapters" / "a" / "model"
    shutil.copytree(own, fetched)
    files = tuple(
        ManifestFile(p.name, p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in fetched.iterdir()
    )
    manifest = Manifest(uri="hf://o/a", revision="", commit="c", files=files, bytes_total=0)
    (fetched.parent / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    engine = config(model=str(fetched_model), lora_modules=(LoraModule("a", str(fetched)),))
    start.start_engine(engine)
    weights = fetched / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"adapter_model\.safetensors: its sha256 is"):
        start.start_engine(engine)


@pytest.fixture
def fetched_model(tiny_model, tmp_path):
    """A model as a fetch leaves it: in a folder `model`, the manifest beside it."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), model)
    files = tuple(
        ManifestFile(
            path=path.name,
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in model.iterdir()
    )
    manifest = Manifest(
        uri="hf://org/name",
        revision="main",
        commit="0" * 40,
        files=files,
        bytes_total=sum(file.size for file in files),
    )
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return model


def test_a_flipped_byte_in_the_weights_is_never_served(config, fetched_model):
    start.start_engine(config(model=str(fetched_model)))
    weights = fetched_model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors"):
        start.start_engine(config(model=str(fetched_model)))
    start.start_engine(config(model=str(fetched_model), verify_weights="never"))


def test_a_start_that_fails_does_not_wait_for_the_hashes(config, fetched_model, tmp_path):
    large = ManifestFile(path="large.bin", size=64 * GIB, sha256="0" * 64)  # a minute's hashing
    with (fetched_model / large.path).open("wb") as file:
        file.truncate(large.size)
    manifest = msgspec.json.decode((tmp_path / "manifest.json").read_bytes(), type=Manifest)
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, large))
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(ConfigError):
        start.start_engine(config(model=str(fetched_model), max_model_len=1000000000000))
    hashing = [thread for thread in threading.enumerate() if thread.name.startswith("verify")]
    for thread in hashing:
        thread.join(10)
    assert not any(thread.is_alive() for thread in hashing)


def test_always_refuses_a_model_without_a_manifest(config):
    with pytest.raises(ModelCorrupt, match="needs a manifest"):
        start.start_engine(config(verify_weights="always"))


def spoil(folder, how):
    weights = folder / "adapter_model.safetensors"
    if how == "gone":
        shutil.rmtree(folder)
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-2])
    else:
        (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("gone", r"got .* without adapter_config\.json"),
        ("cut", "its header asks for"),
        ("garbled", "must be a JSON object with r"),
    ],
)
def test_a_bad_adapter_that_no_fetch_brings_is_no_case_for_a_repair(
    config, fetched_model, make_adapter, tmp_path, how, words
):
    """By its exit code: the operator would hash and fetch the healthy model, for ever."""
    own = make_adapter(fetched_model, "own")
    beside = tmp_path / "adapters" / "x" / "model"
    shutil.copytree(own, beside)
    for folder in (own, beside):
        spoil(folder, how)
    module = LoraModule("support", str(own))
    with pytest.raises(AdapterUnusable, match=rf"adapter support: .*{words}") as caught:
        start.start_engine(config(model=str(fetched_model), lora_modules=(module,)))
    assert caught.value.exit_code == 2
    module = LoraModule("support", str(beside))
    with pytest.raises(ModelError, match=words) as repairable:
        start.start_engine(config(model=str(fetched_model), lora_modules=(module,)))
    assert repairable.value.exit_code in (65, 66)


def test_a_manifest_that_is_asked_for_beside_an_adapter_is_no_case_for_a_repair(
    config, fetched_model, make_adapter
):
    module = LoraModule("support", str(make_adapter(fetched_model, "own")))
    with pytest.raises(AdapterUnusable, match=r"adapter support: .*needs a manifest"):
        start.start_engine(
            config(model=str(fetched_model), lora_modules=(module,), verify_weights="always")
        )
