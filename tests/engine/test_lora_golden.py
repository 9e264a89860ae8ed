"""Greedy tokens of the real model under adapters, against transformers with merged weights, fp32.

A mismatch passes only where transformers' own two largest logits lie within 1e-4 of each other.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quire_cluster.tiny_adapters import write_tiny_adapter
from quire_engine.adapters import WEIGHTS
from quire_engine.config import EngineConfig, LoraModule
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.start import start_engine

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

MODELS = Path(os.environ.get("QUIRE_CACHE", "~/.cache/quire")).expanduser() / "models"
MODEL = MODELS / "SmolLM2-135M-Instruct"
PROMPTS = json.loads((Path(__file__).parent / "golden" / "golden.json").read_text())[:4]
NUM_TOKENS = 24
MAX_GAP = 1e-4
ALPHA, RANK = 320, 8


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters of all linear layers, strong enough to say something else."""
    config = json.loads((MODEL / "config.json").read_text())
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_tiny_adapter(folder / name, config, rank=RANK, alpha=ALPHA, seed=seed)
        for name, seed in (("one", 1), ("two", 2))
    }


@pytest.fixture(scope="module")
def wanted(adapters):
    """(adapter, prompt) -> transformers' tokens and the gap of its two largest logits at each."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    answers = {}
    for adapter in ("", *adapters):
        merge(model, adapters.get(adapter), ALPHA / RANK)
        for entry in PROMPTS:
            answers[adapter, entry["name"]] = greedy(model, entry["prompt"])
        merge(model, adapters.get(adapter), -ALPHA / RANK)
    return answers


def merge(model, folder, scale):
    """W + scale * B A, in place; and back with the scale's other sign, but for rounding."""
    tensors = load_file(folder / WEIGHTS) if folder is not None else {}
    with torch.no_grad():
        for name, down in tensors.items():
            if ".lora_A." in name:
                up = tensors[name.replace(".lora_A.", ".lora_B.")]
                path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                model.get_submodule(path).weight += scale * (up.float() @ down.float())


def greedy(model, prompt):
    tokens, gaps, past = [], [], None
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            out = model(ids, past_key_values=past, use_cache=True)
            past = out.past_key_values
            best = out.logits[0, -1].topk(2)
            tokens.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
            ids = best.indices[:1].view(1, 1)
    return tokens, gaps


@pytest.mark.parametrize("requested", ["one", "mixed"])
def test_tokens_are_those_of_merged_weights(adapters, wanted, requested):
    """Of one adapter's requests together, and of both adapters and the model in one batch."""
    modules = tuple(LoraModule(name, str(folder)) for name, folder in adapters.items())
    config = EngineConfig(
        model=str(MODEL), device="cpu", lora_modules=modules, kv_cache_memory_bytes=1 << 28
    )
    engine, _ = start_engine(config)
    names = ("one",) if requested == "one" else ("", "one", "two")
    for adapter in names:
        for entry in PROMPTS:
            engine.add_request(
                AddRequest(
                    request_id=RequestId(f"{adapter}/{entry['name']}"),
                    prompt_token_ids=tuple(entry["prompt"]),
                    sampling=SamplingParams(temperature=0, max_tokens=NUM_TOKENS),
                    adapter=adapter,
                )
            )
    answers = {f"{adapter}/{entry['name']}": [] for adapter in names for entry in PROMPTS}
    while engine.num_pending:
        for output in engine.step().outputs:
            assert not output.error
            answers[output.request_id] += output.token_ids
    for adapter in names:
        for entry in PROMPTS:
            tokens, gaps = wanted[adapter, entry["name"]]
            ours = answers[f"{adapter}/{entry['name']}"]
            assert len(ours) == NUM_TOKENS
            for one, other, gap in zip(ours, tokens, gaps, strict=True):
                if one != other:
                    assert gap <= MAX_GAP, f"{adapter}/{entry['name']}: {one} for {other}"
                    break  # what follows answers another history
        told = [(wanted[adapter, e["name"]][0], wanted["", e["name"]][0]) for e in PROMPTS]
        assert not adapter or any(one != other for one, other in told), "the adapter must matter"
