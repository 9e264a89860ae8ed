"""Steps that are padded into a graph against the same steps run plainly. The graph is a stand-in
that runs what was captured again, with the same memory: no GPU here."""

import pytest
import torch

from quire_engine.activations import graph_sizes
from quire_engine.batch import Batch, Chunk
from quire_engine.config import EngineConfig
from quire_engine.graphed_steps import GraphedSteps
from quire_engine.loader import load_model
from quire_engine.messages import RequestId, SamplingParams
from quire_engine.runner import ModelRunner, build_inputs
from quire_engine.sequence import Sequence
from quire_engine.static_inputs import StaticInputs

CPU = torch.device("cpu")
BLOCK_SIZE, NUM_BLOCKS, MAX_BLOCKS = 4, 64, 5


class Rerun:
    """A graph that is the function itself. Its output has one place, as a graph's has."""

    def __init__(self, function):
        self.function, self.out = function, function()

    def replay(self):
        self.out.copy_(self.function())


@pytest.fixture
def runner(tiny_model):
    model = load_model(EngineConfig(model=str(tiny_model())), CPU)
    return ModelRunner(model, NUM_BLOCKS, BLOCK_SIZE)


@pytest.fixture
def captured():
    return []


@pytest.fixture
def graphed(runner, captured):
    def capture(function):
        graph = Rerun(function)
        captured.append(len(graph.out))
        return graph, graph.out

    return GraphedSteps(runner._forward, StaticInputs(11, MAX_BLOCKS, CPU), capture)


def decode(number, num_tokens=9, token_id=5):
    """A sequence that is one token short; block 0 is nobody's."""
    begin = 1 + 3 * number
    sequence = Sequence(
        request_id=RequestId(str(number)), sampling=SamplingParams(), cache_salt="",
        arrival_time=0.0, num_prompt_tokens=1, token_ids=[7] * (num_tokens - 1) + [token_id],
        block_table=[begin, begin + 1, begin + 2], num_computed_tokens=num_tokens - 1,
    )  # fmt: skip
    return Chunk(sequence, 1, samples=True)


def caches(runner):
    [caches] = [runner._forward.keywords["caches"]]
    return [part for cache in caches for part in (cache.keys, cache.values)]


@pytest.mark.parametrize(
    ("max_seqs", "sizes"),
    [(1, [1]), (3, [1, 2, 3]), (11, [1, 2, 4, 8, 11]),
     (128, [1, 2, 4, 8, 16, 32, 48, 64, 96, 128])],
)  # fmt: skip
def test_sizes_are_few_and_end_with_the_largest(max_seqs, sizes):
    assert graph_sizes(max_seqs) == sizes


def test_the_largest_is_captured_first_and_the_rest_when_they_are_wanted(graphed, captured):
    with torch.inference_mode():
        graphed.warm_up()
        assert captured == [11, 1, 2]
        for _ in range(2):
            graphed.run(build_inputs(tuple(decode(n) for n in range(5)), BLOCK_SIZE))
    assert captured == [11, 1, 2, 8]


@torch.inference_mode()
def test_padded_steps_give_what_plain_ones_give(runner, graphed):
    """In batches that grow and shrink, so that padding lies where sequences were before."""
    for cache in caches(runner):
        cache.normal_(generator=torch.Generator().manual_seed(1))
    graphed.warm_up()
    for count in (11, 3, 8, 1, 5, 2):
        chunks = tuple(decode(n, num_tokens=9 + (n + count) % 4, token_id=n) for n in range(count))
        inputs = build_inputs(chunks, BLOCK_SIZE)
        logits = graphed.run(inputs).clone()
        torch.testing.assert_close(logits, runner._forward(inputs))


@torch.inference_mode()
def test_padding_writes_nowhere(runner, graphed):
    for cache in caches(runner):
        cache.fill_(3.0)
    graphed.warm_up()
    assert all((cache == 3.0).all() for cache in caches(runner))
    graphed.run(build_inputs((decode(0), decode(1), decode(2)), BLOCK_SIZE))
    for cache in caches(runner):
        written = (cache != 3.0).flatten(2).any(2).nonzero().tolist()
        assert written == [[3, 0], [6, 0], [9, 0]], "the ninth token of each"


@torch.inference_mode()
@pytest.mark.parametrize("what", ["prompt", "too many", "too long"])
def test_other_steps_are_run_plainly(what, graphed, captured):
    chunks = (decode(0),)
    if what == "prompt":
        prompt = decode(1).sequence
        prompt.num_computed_tokens = 0
        chunks = (decode(0), Chunk(prompt, 9, samples=True))
    elif what == "too many":
        chunks = tuple(decode(n) for n in range(12))
    else:
        chunks[0].sequence.block_table += [40, 41, 42]
    assert graphed.run(build_inputs(chunks, BLOCK_SIZE)) is None
    assert captured == []


@torch.inference_mode()
def test_a_runner_uses_them(runner, graphed, captured):
    batch = Batch((decode(0), decode(1), decode(2)))
    expected = runner.run(batch).clone()
    runner._recorded = graphed
    runner.warm_up()
    torch.testing.assert_close(runner.run(batch), expected)
    assert captured == [11, 1, 2, 4]
