import re

import pytest
import torch

from quire_engine.block_manager import BlockManager
from quire_engine.engine import Engine
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.scheduler import Scheduler
from quire_engine.testing import FakeModel, complete

VOCAB = 97


def engine_of(num_blocks=40, **limits):
    blocks = BlockManager(num_blocks, 4, enable_prefix_caching=True)
    limits = {"max_num_seqs": 8, "token_budget": 16, "max_model_len": 100, **limits}
    return Engine(Scheduler(blocks, **limits), FakeModel(4, VOCAB), clock=lambda: 7.0)


def request(name, prompt, **sampling):
    return AddRequest(
        request_id=RequestId(name),
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**{"temperature": 0, "max_tokens": 5, **sampling}),
    )


def run(engine):
    """Steps to the end: each request's tokens, and its last output."""
    tokens, last = {}, {}
    while engine.num_pending:
        for output in engine.step().outputs:
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
            last[output.request_id] = output
    return tokens, last


@pytest.mark.parametrize("num_blocks", [40, 9])
def test_each_request_gets_its_own_answer_batched_and_crowded(num_blocks):
    engine = engine_of(num_blocks)
    prompts = {f"r{n}": [n % 3] * (3 + 2 * n) for n in range(8)}
    for name, prompt in prompts.items():
        engine.add_request(request(name, prompt, max_tokens=12))
    tokens, last = run(engine)
    assert tokens == {name: complete(prompt, 12, VOCAB) for name, prompt in prompts.items()}
    assert {output.finish_reason for output in last.values()} == {"length"}
    assert (engine.scheduler.counters.num_preemptions > 0) == (num_blocks == 9)


def test_a_stop_id_ends_and_is_named():
    answer = complete([1, 2], 9, VOCAB)
    engine = engine_of()
    engine.add_request(request("r", [1, 2], max_tokens=9, stop_token_ids=(answer[3],)))
    tokens, last = run(engine)
    assert tokens["r"] == answer[:4]
    assert (last["r"].finish_reason, last["r"].stop_token_id) == ("stop", answer[3])


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (request("bad", []), "1 to 99 tokens"),
        (request("bad", [1] * 100), "1 to 99 tokens.*got 100"),
        (request("bad", [VOCAB]), "prompt token ids must be >= 0 and < 97"),
        (request("bad", [-1]), "prompt token ids"),
        (request("bad", [1], stop_token_ids=(10**30,)), "stop token ids"),
    ],
)
def test_a_request_that_cannot_run_is_answered_and_hurts_nobody(bad, complaint):
    engine = engine_of()
    engine.add_request(request("good", [1]))
    engine.add_request(bad)
    tokens, last = run(engine)
    assert last["bad"].finish_reason == "error"
    assert re.search(complaint, last["bad"].error)
    assert tokens["good"] == complete([1], 5, VOCAB)


def test_a_lone_bad_request_is_answered_too():
    engine = engine_of()
    engine.add_request(request("bad", []))
    assert engine.num_pending == 1
    assert [output.finish_reason for output in engine.step().outputs] == ["error"]
    assert engine.num_pending == 0


def test_a_row_of_nan_ends_its_request_only():
    class Poisoned(FakeModel):
        def run(self, batch):
            logits = super().run(batch)
            for row, sequence in enumerate(batch.sampling):
                if sequence.request_id == "bad":
                    logits[row] = float("nan")
            return logits

    engine = engine_of()
    engine._model = Poisoned(4, VOCAB)
    engine.add_request(request("bad", [5]))
    engine.add_request(request("good", [1]))
    tokens, last = run(engine)
    assert last["bad"].finish_reason == "error"
    assert "NaN" in last["bad"].error
    assert tokens["good"] == complete([1], 5, VOCAB)
    engine.scheduler.check_integrity()


def test_an_aborted_request_says_nothing_more_and_holds_nothing():
    engine = engine_of()
    engine.add_request(request("gone", [1] * 30, max_tokens=50))
    engine.add_request(request("stays", [2], max_tokens=3))
    engine.step()
    engine.abort([RequestId("gone"), RequestId("unknown")])
    tokens, _ = run(engine)
    assert "gone" not in tokens
    assert engine.idle_report().stats.num_free_blocks == 40


def test_stats_tell_the_state_after_the_step():
    engine = engine_of(max_num_seqs=1)
    engine.add_request(request("a", range(10)))
    engine.add_request(request("b", range(10)))
    stats = engine.step().stats
    assert (stats.num_running, stats.num_waiting, stats.step_tokens) == (1, 1, 10)
    assert stats.kv_cache_usage == pytest.approx(3 / 40)
    assert (stats.prompt_tokens, stats.generation_tokens) == (10, 1)
    assert stats.queue_seconds == (0.0,)
    run(engine)
    idle = engine.idle_report().stats
    assert (idle.prefix_cache_queries, idle.prefix_cache_hits) == (20, 8)
    assert idle.generation_tokens == 10


def test_cached_tokens_are_reported():
    engine = engine_of()
    engine.add_request(request("a", range(10)))
    run(engine)
    engine.add_request(request("b", range(10)))
    _, last = run(engine)
    assert last["b"].num_cached_tokens == 8


def test_after_a_reset_nothing_from_before_is_found():
    engine = engine_of()
    engine.add_request(request("a", range(10)))
    run(engine)
    engine.reset_prefix_cache()
    engine.add_request(request("b", range(10)))
    tokens, last = run(engine)
    assert (tokens["b"], last["b"].num_cached_tokens) == (complete(range(10), 5, VOCAB), 0)
    assert engine.idle_report().stats.prefix_cache_hits == 0


def test_requests_without_a_seed_get_seeds_of_their_own():
    def seeds(engine_seed):
        engine = engine_of()
        engine._seed = engine_seed
        for name in "abc":
            engine.add_request(request(name, [1], seed=None))
        engine.add_request(request("d", [1], seed=5))
        return [sequence.seed for sequence in engine.scheduler.waiting]

    assert len(set(seeds(0))) == 4
    assert seeds(0) == seeds(0)
    assert seeds(0)[:3] != seeds(1)[:3]
    assert seeds(0)[3] == 5


def test_sampled_answers_do_not_depend_on_the_batch():
    class Flat(FakeModel):
        def run(self, batch):
            return torch.zeros_like(super().run(batch))

    def answer(*others):
        engine = engine_of()
        engine._model = Flat(4, VOCAB)
        for name in others:
            engine.add_request(request(name, [3], temperature=1.0, seed=1))
        engine.add_request(request("r", [1, 2], temperature=1.0, seed=42, max_tokens=8))
        return run(engine)[0]["r"]

    assert answer() == answer("x", "y", "z")
    assert len(set(answer())) > 4
