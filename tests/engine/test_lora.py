"""Adapters in the forward pass, against the model with W + scale * B A merged into its weights."""

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

import quire_kernels as kernels
from quire_engine.activations import workspace_values
from quire_engine.adapter_loader import content_hash, load_adapter
from quire_engine.adapters import WEIGHTS, adapter_bytes
from quire_engine.batch import Chunk
from quire_engine.config import EngineConfig
from quire_engine.fetch.headers import read_local_adapter
from quire_engine.loader import load_model
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.models.decoder import allocate_kv_cache
from quire_engine.runner import build_inputs
from quire_engine.sequence import Sequence

CPU = torch.device("cpu")
BLOCK_SIZE = 8


def merged(reference, folder, scale):
    """The transformers model with the adapter in its weights, all in float32."""
    model = copy.deepcopy(reference)
    tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    with torch.no_grad():
        for name, down in tensors.items():
            if ".lora_A." not in name:
                continue
            up = tensors[name.replace(".lora_A.", ".lora_B.")]
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            model.get_submodule(path).weight += scale * (up @ down)
    return model


def sequence_of(token_ids, blocks, adapter=""):
    request = AddRequest(
        request_id=RequestId("r"),
        prompt_token_ids=tuple(token_ids),
        sampling=SamplingParams(),
        adapter=adapter,
    )
    sequence = Sequence.of(request, arrival_time=0.0)
    sequence.block_table = list(blocks)
    return sequence


def all_logits(model, adapters, sequences, steps, workspace=None):
    """Logits of every token of `sequences`, which are in the order of their adapters' names."""
    caches = allocate_kv_cache(model.decoder.config, 40, BLOCK_SIZE, model.activation_dtype, CPU)
    rows = [[] for _ in sequences]
    for lengths in steps:
        chunks = tuple(
            Chunk(sequence, length, samples=True)
            for sequence, length in zip(sequences, lengths, strict=True)
            if length
        )
        inputs = build_inputs(chunks, BLOCK_SIZE, adapters)
        wanted = torch.arange(len(inputs.token_ids))
        everywhere = tuple(dataclasses.replace(a, sampled=a.tokens) for a in inputs.adapters)
        with torch.inference_mode():
            wanting = dataclasses.replace(inputs, logits_rows=wanted, adapters=everywhere)
            logits = model.decoder.forward(wanting, caches, workspace).clone()
        for chunk, part in zip(chunks, logits.split([c.num_tokens for c in chunks]), strict=True):
            rows[sequences.index(chunk.sequence)].append(part)
            chunk.sequence.num_computed_tokens += chunk.num_tokens
    return [torch.cat(parts) for parts in rows]


def prompts(*lengths):
    torch.manual_seed(5)
    return [torch.randint(0, 128, (length,)).tolist() for length in lengths]


@pytest.mark.parametrize("family", ["llama", "llama-untied-bias", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_logits_equal_those_of_merged_weights(
    family, dtype, tiny_model, reference_model, make_adapter
):
    folder = tiny_model(family, torch.bfloat16)
    adapter = make_adapter(folder, rank=3, alpha=300)
    if dtype is torch.float32:
        tensors = {n: t.float() * 1.001 for n, t in load_file(adapter / WEIGHTS).items()}
        save_file(tensors, adapter / WEIGHTS)
    reference = copy.deepcopy(reference_model(family))
    for parameter in reference.parameters():
        parameter.data = parameter.data.bfloat16().float()
    loaded = load_model(EngineConfig(model=str(folder)), CPU)
    adapters = {"a": load_adapter(adapter, loaded, None)}
    [prompt] = prompts(50)
    [ours] = all_logits(
        loaded, adapters, [sequence_of(prompt, range(7), "a")], [(20,), (29,), (1,)]
    )
    with torch.inference_mode():
        theirs = merged(reference, adapter, 100.0)(torch.tensor([prompt])).logits[0]
        base = reference(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=5e-4)
    assert (theirs - base).abs().max() > 1, "the adapter must matter"


def test_targets_that_an_adapter_leaves_out_stay_the_models(
    tiny_model, reference_model, make_adapter
):
    folder = tiny_model("llama")
    adapter = make_adapter(folder, targets=("v_proj", "up_proj"), alpha=400, use_rslora=True)
    loaded = load_model(EngineConfig(model=str(folder)), CPU)
    adapters = {"a": load_adapter(adapter, loaded, None)}
    [prompt] = prompts(30)
    [ours] = all_logits(loaded, adapters, [sequence_of(prompt, range(4), "a")], [(30,)])
    with torch.inference_mode():
        reference = merged(reference_model("llama"), adapter, 200.0)
        theirs = reference(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=5e-4)


@pytest.mark.skipif(kernels.isa() == "torch", reason="no compiled variant")
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("with_workspace", [False, True])
def test_a_request_is_bitwise_the_same_alone_and_beside_others(
    quantization, with_workspace, tiny_model, make_adapter
):
    """Beside the model itself, the same adapter and another one; in chunks or whole."""
    folder = tiny_model("llama", torch.bfloat16)
    loaded = load_model(EngineConfig(model=str(folder), quantization=quantization), CPU)
    adapters = {
        name: load_adapter(make_adapter(folder, name, seed=seed, rank=rank), loaded, None)
        for name, seed, rank in (("a", 1, 4), ("b", 2, 7))
    }
    names = ("", "a", "a", "b")
    texts = prompts(21, 40, 33, 50)
    size = workspace_values(loaded.decoder.config, 150, 150)
    workspace = torch.zeros(size) if with_workspace else None
    alone = [
        all_logits(loaded, adapters, [sequence_of(text, range(8), name)], [(len(text),)])[0]
        for text, name in zip(texts, names, strict=True)
    ]
    beside = [
        sequence_of(text, range(8 * index, 8 * index + 8), name)
        for index, (text, name) in enumerate(zip(texts, names, strict=True))
    ]
    steps = [(5, 7, 0, 50), (0, 32, 33, 0), (16, 1, 0, 0)]
    together = all_logits(loaded, adapters, beside, steps, workspace)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_only_sampling_rows_reach_the_last_half_layer(tiny_model, make_adapter):
    """Three chunks of one adapter, of which two sample: their rows of logits and no others."""
    folder = tiny_model("llama", torch.bfloat16)
    loaded = load_model(EngineConfig(model=str(folder)), CPU)
    adapters = {"a": load_adapter(make_adapter(folder), loaded, None)}
    texts = prompts(9, 12, 7, 5)
    names = ("", "a", "a", "a")
    wholes = [
        all_logits(loaded, adapters, [sequence_of(text, range(2), name)], [(len(text),)])[0][-1]
        for text, name in zip(texts, names, strict=True)
    ]
    sequences = [
        sequence_of(text, (2 * index, 2 * index + 1), name)
        for index, (text, name) in enumerate(zip(texts, names, strict=True))
    ]
    chunks = tuple(
        Chunk(sequence, sequence.num_tokens - (index == 2), samples=index != 2)
        for index, sequence in enumerate(sequences)
    )
    inputs = build_inputs(chunks, BLOCK_SIZE, adapters)
    assert [(rows.tokens, rows.sampled) for rows in inputs.adapters] == [
        (slice(9, 32), slice(1, 3))
    ]
    caches = allocate_kv_cache(loaded.decoder.config, 8, BLOCK_SIZE, loaded.activation_dtype, CPU)
    with torch.inference_mode():
        logits = loaded.decoder.forward(inputs, caches)
    for row, index in enumerate((0, 1, 3)):
        torch.testing.assert_close(logits[row], wholes[index])


def test_loaded_bytes_are_the_planned_ones(tiny_model, make_adapter):
    for dtype in (torch.bfloat16, torch.float32):
        folder = tiny_model("qwen3", torch.bfloat16)
        adapter = make_adapter(folder, rank=5, targets=("q_proj", "v_proj", "o_proj", "up_proj"))
        tensors = {n: t.to(dtype) * 1.001 for n, t in load_file(adapter / WEIGHTS).items()}
        save_file(tensors, adapter / WEIGHTS)
        engine = EngineConfig(model=str(folder))
        loaded = load_model(engine, CPU)
        config = loaded.decoder.config
        planned = adapter_bytes(read_local_adapter(adapter, config), config, engine, "cpu")
        assert load_adapter(adapter, loaded, None).nbytes == planned


def test_the_hash_is_of_both_files(tiny_model, make_adapter):
    folder = tiny_model("llama")
    first = make_adapter(folder, "first", seed=1)
    assert content_hash(first) == content_hash(make_adapter(folder, "second", seed=1))
    assert content_hash(first) != content_hash(make_adapter(folder, "third", seed=2))
    assert content_hash(first) != content_hash(make_adapter(folder, "fourth", seed=1, alpha=1))
