"""A request with a seed gets bitwise the same logits, and so the same answer, alone and in any
company: whatever else runs, how long its chunks are, what it finds cached, and however often it is
preempted. Over the compiled kernels of a CPU; the limits are in engine/README.md.
"""

import random
from itertools import accumulate, repeat

import pytest
import torch

import quire_kernels as kernels
from quire_engine.block_manager import BlockManager
from quire_engine.config import EngineConfig
from quire_engine.engine import Engine
from quire_engine.loader import load_model
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.runner import ModelRunner
from quire_engine.scheduler import Scheduler
from quire_engine.step_time import StepTime

pytestmark = pytest.mark.skipif(kernels.isa() == "torch", reason="no compiled variant")
CPU = torch.device("cpu")
BLOCK_SIZE = 8
NAME = RequestId("r")
PROMPT = tuple(random.Random(4).choices(range(128), k=70))


class Watched:
    """A runner that keeps what it computes for one request."""

    def __init__(self, runner):
        self._runner = runner
        self.vocab_size = runner.vocab_size
        self.logits = []
        self.chunk_lengths = set()
        self.num_preemptions = 0

    def run(self, batch):
        logits = self._runner.run(batch)
        for row, sequence in enumerate(batch.sampling):
            if sequence.request_id == NAME:
                self.logits.append(logits[row].clone())
        for chunk in batch.chunks:
            if chunk.sequence.request_id == NAME:
                self.chunk_lengths.add(chunk.num_tokens)
                self.num_preemptions = chunk.sequence.num_preemptions
        return logits


def engine_of(loaded, num_blocks, seed):
    """Its steps take what `seed` draws: so do the lengths of the chunks."""
    generator = random.Random(seed)
    times = accumulate(generator.uniform(0.001, 0.05) for _ in repeat(None))
    scheduler = Scheduler(
        BlockManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=True),
        max_num_seqs=16,
        token_budget=60,
        max_model_len=200,
        step_time=StepTime(1.5),
    )
    watched = Watched(ModelRunner(loaded, num_blocks, BLOCK_SIZE))
    return Engine(scheduler, watched, clock=lambda: next(times)), watched


def request(name, prompt, max_tokens, seed):
    sampling = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=max_tokens, seed=seed)
    return AddRequest(request_id=RequestId(name), prompt_token_ids=prompt, sampling=sampling)


def run(engine):
    """To the end: the request's tokens, and how many of its prompt were cached."""
    tokens, cached = [], 0
    while engine.num_pending:
        for output in engine.step().outputs:
            if output.request_id == NAME:
                tokens += output.token_ids
                cached = output.num_cached_tokens
    return tokens, cached


@pytest.fixture
def threads():
    yield kernels.set_num_threads
    kernels.set_num_threads(1)


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_a_seed_gives_the_same_bits_alone_and_in_any_company(quantization, tiny_model, threads):
    folder = str(tiny_model("qwen3", torch.bfloat16))
    loaded = load_model(EngineConfig(model=folder, quantization=quantization), CPU)
    threads(1)
    engine, alone = engine_of(loaded, num_blocks=100, seed=0)
    engine.add_request(request(NAME, PROMPT, 30, seed=7))
    answer, cached = run(engine)
    assert (len(answer), len(alone.logits), cached) == (30, 30, 0)
    assert len(set(answer)) > 5

    threads(3)
    for seed in (1, 2, 3):
        engine, crowded = engine_of(loaded, num_blocks=60, seed=seed)
        engine.add_request(request("before", PROMPT[:33], 1, seed=1))
        run(engine)
        generator = random.Random(seed)
        for number in range(8):
            other = tuple(generator.choices(range(128), k=20))
            engine.add_request(request(f"other{number}", other, 60, seed=number))
        for _ in range(generator.randrange(4, 12)):
            engine.step()
        engine.add_request(request(NAME, PROMPT, 30, seed=7))
        again, cached = run(engine)
        assert cached == 32
        assert crowded.num_preemptions > 0
        assert len(crowded.chunk_lengths) > 2
        assert again == answer
        assert torch.equal(torch.stack(crowded.logits), torch.stack(alone.logits))
