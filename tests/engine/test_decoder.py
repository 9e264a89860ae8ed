"""Logits of each family against transformers, on tiny random models."""

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

import quire_kernels as kernels
from quire_engine.activations import workspace_values
from quire_engine.batch import Chunk
from quire_engine.config import EngineConfig
from quire_engine.loader import load_model
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.models.decoder import allocate_kv_cache
from quire_engine.runner import build_inputs
from quire_engine.sequence import Sequence
from quire_kernels.ops.linear.int4 import dequantize_int4, quantize_int4
from quire_kernels.ops.linear.int8 import dequantize_int8, quantize_int8

CPU = torch.device("cpu")
BLOCK_SIZE = 8
FAMILIES = ("llama", "llama-scaled", "llama-untied-bias", "qwen2", "qwen2-tied", "qwen3")


def sequence_of(token_ids, blocks):
    request = AddRequest(
        request_id=RequestId("r"), prompt_token_ids=token_ids, sampling=SamplingParams()
    )
    sequence = Sequence.of(request, arrival_time=0.0)
    sequence.block_table = list(blocks)
    return sequence


def all_logits(model, sequences, steps, workspace=None):
    """Logits of every token of `sequences`, computed in `steps` of so many tokens of each."""
    caches = allocate_kv_cache(model.decoder.config, 32, BLOCK_SIZE, model.activation_dtype, CPU)
    rows = [[] for _ in sequences]
    for lengths in steps:
        chunks = tuple(
            Chunk(sequence, length, samples=False)
            for sequence, length in zip(sequences, lengths, strict=True)
            if length
        )
        inputs = build_inputs(chunks, BLOCK_SIZE)
        wanted = torch.arange(len(inputs.token_ids))
        with torch.inference_mode():
            wanting = dataclasses.replace(inputs, logits_rows=wanted)
            logits = model.decoder.forward(wanting, caches, workspace).clone()
        for chunk, part in zip(chunks, logits.split([c.num_tokens for c in chunks]), strict=True):
            rows[sequences.index(chunk.sequence)].append(part)
            chunk.sequence.num_computed_tokens += chunk.num_tokens
    return [torch.cat(parts) for parts in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_in_float32(family, dtype, tiny_model, reference_model):
    """Chunked, batched, through scattered blocks; bf16 weights are widened by both."""
    torch.manual_seed(5)
    prompts = [torch.randint(0, 128, (length,)).tolist() for length in (21, 90)]
    loaded = load_model(EngineConfig(model=str(tiny_model(family, dtype))), CPU)
    first = sequence_of(tuple(prompts[0]), [3, 9, 1])
    second = sequence_of(tuple(prompts[1]), [30, 2, 8, 4, 20, 5, 7, 11, 13, 0, 17, 19])
    ours = all_logits(loaded, [first, second], [(5, 7), (0, 40), (15, 1), (1, 42)])
    reference = copy.deepcopy(reference_model(family))
    for parameter in reference.parameters():  # not the rotary buffers, which stay float32
        parameter.data = parameter.data.to(dtype).float()
    for logits, prompt in zip(ours, prompts, strict=True):
        with torch.inference_mode():
            theirs = reference(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(logits, theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.skipif(kernels.isa() == "torch", reason="no compiled variant")
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logits_are_bitwise_the_same_in_any_batch(family, quantization, tiny_model):
    torch.manual_seed(6)
    prompts = [tuple(torch.randint(0, 128, (length,)).tolist()) for length in (21, 90)]
    folder = str(tiny_model(family, torch.bfloat16))
    loaded = load_model(EngineConfig(model=folder, quantization=quantization), CPU)
    [first] = all_logits(loaded, [sequence_of(prompts[0], range(3))], [(21,)])
    [second] = all_logits(loaded, [sequence_of(prompts[1], range(12))], [(90,)])
    together = [sequence_of(prompts[0], range(3)), sequence_of(prompts[1], range(3, 15))]
    both = all_logits(loaded, together, [(5, 7), (0, 40), (15, 1), (1, 42)])
    assert torch.equal(both[0], first)
    assert torch.equal(both[1], second)


# The rows that int8 weights multiply are rounded to 16 bits, those of int4 ones to 8: 1e-5 and half
# a percent of a product. Large random weights, whose softmax is all or nothing, make some thirty
# times as much of it; weights that are read wrongly would give 1.4.
@pytest.mark.parametrize(("quantization", "error"), [("int8", 1e-3), ("int4", 0.15)])
def test_logits_are_near_those_of_the_weights_that_quantized_ones_stand_for(
    tiny_model, quantization, error
):
    """The dequantized weights through the float path. int4 leaves embedding and head in int8."""
    folder = tiny_model("llama-untied-bias")
    loaded = load_model(EngineConfig(model=str(folder), quantization=quantization), CPU)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and quantization == "int4" and ".layers." in name:
            tensors[name] = dequantize_int4(*quantize_int4(tensor))
        elif tensor.dim() == 2:
            tensors[name] = dequantize_int8(*quantize_int8(tensor))
    save_file(tensors, path, {"format": "pt"})
    rounded = load_model(EngineConfig(model=str(folder)), CPU)
    prompt = tuple(range(40))
    [ours] = all_logits(loaded, [sequence_of(prompt, range(5))], [(40,)])
    [theirs] = all_logits(rounded, [sequence_of(prompt, range(5))], [(40,)])
    assert (ours - theirs).std() < error * theirs.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_workspace_changes_no_bit(family, tiny_model):
    """In memory that holds what a step of other sizes left, and no value more than is planned."""
    loaded = load_model(EngineConfig(model=str(tiny_model(family))), CPU)
    workspace = torch.full((workspace_values(loaded.decoder.config, 52, 52),), torch.nan)
    prompt = tuple(range(100))

    def logits(**kwargs):
        sequence = sequence_of(prompt, range(13))
        return all_logits(loaded, [sequence], [(52,), (1,), (47,)], **kwargs)[0]

    assert torch.equal(logits(workspace=workspace), logits())


def test_a_step_without_a_sampling_row_gives_no_logits(tiny_model):
    loaded = load_model(EngineConfig(model=str(tiny_model())), CPU)
    [logits] = [
        loaded.decoder.forward(
            build_inputs((Chunk(sequence_of((1, 2, 3), [0]), 2, samples=False),), BLOCK_SIZE),
            allocate_kv_cache(loaded.decoder.config, 1, BLOCK_SIZE, torch.float32, CPU),
        )
    ]
    assert logits.shape == (0, 128)
