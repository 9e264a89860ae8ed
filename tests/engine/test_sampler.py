import math

import pytest
import torch

from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.sampler import draw, sample, uniform
from quire_engine.sequence import Sequence


def sequence_of(prompt=(1, 2, 3), **sampling):
    return Sequence.of(
        AddRequest(
            request_id=RequestId("r"),
            prompt_token_ids=tuple(prompt),
            sampling=SamplingParams(**sampling),
        ),
        arrival_time=0.0,
    )


def draws(logits, count, **sampling):
    """`count` tokens drawn from one row of logits with seeds 0, 1, ..."""
    rows = torch.tensor(logits).repeat(count, 1)
    sequences = [sequence_of(seed=seed, **sampling) for seed in range(count)]
    return [token.token_id for token in sample(rows, sequences)]


def shares(tokens, size):
    return [tokens.count(token) / len(tokens) for token in range(size)]


def test_greedy_takes_the_largest_and_the_lowest_id_among_equals():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 3.0, 5.0, 1.0]])
    sampled = sample(logits, [sequence_of(temperature=0)] * 2)
    assert [token.token_id for token in sampled] == [1, 0]


def test_draws_follow_the_softmax_of_the_logits():
    tokens = draws([0.0, math.log(2), math.log(5)], 4000, temperature=1.0)
    assert shares(tokens, 3) == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.03)


def test_temperature_flattens():
    tokens = draws([0.0, math.log(4)], 4000, temperature=2.0)
    assert shares(tokens, 2) == pytest.approx([1 / 3, 2 / 3], abs=0.03)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 1}, {3}),
        ({"top_k": 2}, {2, 3}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.39}, {3}),
        ({"top_p": 0.41}, {2, 3}),
        ({"top_p": 1e-9}, {3}),
        ({"top_k": 3, "top_p": 0.4}, {3}),  # 0.4 / 0.9 of what top-k leaves
        ({"top_k": 3, "top_p": 0.5}, {2, 3}),
        ({"min_p": 0.7}, {2, 3}),
        ({"min_p": 0.2}, {0, 1, 2, 3}),
        ({"min_p": 1.0}, {3}),
    ],
)
def test_truncation_keeps_exactly_these(sampling, kept):
    logits = [math.log(p) for p in (0.1, 0.2, 0.3, 0.4)]
    assert set(draws(logits, 300, temperature=1.0, **sampling)) == kept


def test_top_p_beyond_the_sorted_candidates():
    logits = torch.zeros(5000)  # flat: 1,024 candidates hold a fifth of the mass
    tokens = draws(logits.tolist(), 300, temperature=1.0, top_p=0.9)
    assert len(set(tokens)) > 200


def test_top_p_of_what_a_large_top_k_leaves():
    tokens = draws([0.0] * 5000, 600, temperature=1.0, top_k=4000, top_p=0.9)
    assert len(set(tokens)) > 530  # of 3,600 kept: 600 draws meet about 552 of them


def test_a_seed_gives_the_same_token_in_any_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(33, 1000, generator=generator)
    sequences = [sequence_of(seed=n, temperature=0.8, top_p=0.95, top_k=50) for n in range(33)]
    together = [token.token_id for token in sample(logits.clone(), sequences)]
    alone = [sample(logits[n : n + 1].clone(), [sequences[n]])[0].token_id for n in range(33)]
    assert together == alone


def test_a_seed_gives_other_tokens_at_other_positions():
    sequence = sequence_of(seed=1)
    logits = torch.zeros(1, 1000)
    tokens = []
    for _ in range(10):
        tokens.append(int(draw(logits, [sequence])[0]))
        sequence.token_ids.append(tokens[-1])
    assert len(set(tokens)) > 5


def test_uniforms_are_uniform():
    numbers = [uniform(seed, position) for seed in range(50) for position in range(50)]
    assert 0 <= min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.02)


def test_stop_ids_wait_for_min_tokens():
    sequence = sequence_of(temperature=0, stop_token_ids=(1,), min_tokens=1)
    assert sample(torch.tensor([[0.0, 9.0, 1.0]]), [sequence])[0].token_id == 2
    sequence.token_ids.append(2)
    assert sample(torch.tensor([[0.0, 9.0, 1.0]]), [sequence])[0].token_id == 1


def test_logprobs_are_those_of_the_raw_logits():
    logits = torch.tensor([[1.0, 2.0, 4.0, 0.0]])
    expected = torch.log_softmax(logits[0], dim=0).tolist()
    [token] = sample(
        logits, [sequence_of(temperature=0, num_logprobs=2, stop_token_ids=(2,), min_tokens=1)]
    )
    assert token.token_id == 1
    assert token.logprobs.chosen == pytest.approx(expected[1])
    assert token.logprobs.top_token_ids == (2, 1)
    assert token.logprobs.top_logprobs == pytest.approx((expected[2], expected[1]))


def test_no_top_logprobs_still_gives_the_chosen_one():
    [token] = sample(torch.zeros(1, 4), [sequence_of(temperature=0, num_logprobs=0)])
    assert token.logprobs.chosen == pytest.approx(math.log(1 / 4))
    assert token.logprobs.top_token_ids == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_nan_fails_alone(temperature):
    logits = torch.tensor([[float("nan")] * 3, [0.0, 50.0, 0.0]])
    bad, good = sample(logits, [sequence_of(temperature=temperature)] * 2)
    assert bad.token_id is None
    assert "not numbers" in bad.error
    assert good.token_id == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_single_value_that_is_no_number_fails_its_row(temperature, value):
    logits = torch.tensor([[1.0, float(value), 2.0, 3.0], [0.0, 50.0, float("-inf"), 0.0]])
    bad, good = sample(logits, [sequence_of(temperature=temperature)] * 2)
    assert bad.token_id is None
    assert "not numbers" in bad.error
    assert good.token_id == 1


@pytest.mark.parametrize("temperature", [1e-40, 1e-6, 1e-5, 1e-3])
def test_a_temperature_near_zero_is_greedy(temperature):
    logits = torch.tensor([[1.0, 30.0, 2.0, -3.0]])
    assert sample(logits, [sequence_of(temperature=temperature)])[0].token_id == 1


def test_a_row_that_breaks_the_sampler_fails_alone():
    impossible = sequence_of(temperature=0, num_logprobs=99)  # more than the vocabulary holds
    bad, good = sample(torch.zeros(2, 3), [impossible, sequence_of(temperature=0)])
    assert bad.token_id is None
    assert "could not be sampled" in bad.error
    assert good.token_id == 0


def test_nothing_to_sample():
    assert sample(torch.empty(0, 5), []) == []
