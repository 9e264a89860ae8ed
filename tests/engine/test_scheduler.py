import pytest

from quire_engine.block_manager import BlockManager
from quire_engine.errors import RequestRefused
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.scheduler import Scheduler
from quire_engine.sequence import Sequence


def scheduler_of(num_blocks=100, *, budget=16, max_num_seqs=8, max_model_len=200):
    return Scheduler(
        BlockManager(num_blocks, 4, enable_prefix_caching=True),
        max_num_seqs=max_num_seqs,
        token_budget=budget,
        max_model_len=max_model_len,
    )


def add(scheduler, name, prompt_len, now=0.0, first_token=0, priority=0, user="", **sampling):
    sequence = Sequence.of(
        AddRequest(
            request_id=RequestId(name),
            prompt_token_ids=tuple(range(first_token, first_token + prompt_len)),
            sampling=SamplingParams(temperature=0, **{"max_tokens": 50, **sampling}),
            priority=priority,
            user=user,
        ),
        arrival_time=now,
    )
    scheduler.add(sequence)
    return sequence


def step(scheduler, now=0.0, token=999):
    """Run a step that samples `token` everywhere; what was scheduled, by name."""
    batch = scheduler.schedule(now)
    scheduler.finish_step(batch, [token] * len(batch.sampling))
    return {chunk.sequence.request_id: chunk.num_tokens for chunk in batch.chunks}


def test_a_long_prompt_runs_in_chunks_beside_decodes():
    scheduler = scheduler_of(budget=16)
    add(scheduler, "short", 3)
    assert step(scheduler) == {"short": 3}
    add(scheduler, "long", 40, first_token=100)
    assert step(scheduler) == {"short": 1, "long": 15}
    assert step(scheduler) == {"short": 1, "long": 15}
    assert step(scheduler) == {"short": 1, "long": 10}
    assert step(scheduler) == {"short": 1, "long": 1}


def test_several_prompts_share_one_step():
    scheduler = scheduler_of(budget=16)
    for number in range(4):
        add(scheduler, f"r{number}", 6, first_token=100 * number)
    assert step(scheduler) == {"r0": 6, "r1": 6, "r2": 4}
    assert step(scheduler) == {"r0": 1, "r1": 1, "r2": 2, "r3": 6}


def test_no_more_sequences_run_than_seats():
    scheduler = scheduler_of(max_num_seqs=2)
    for number in range(3):
        add(scheduler, f"r{number}", 2, first_token=100 * number)
    step(scheduler)
    assert (len(scheduler.running), len(scheduler.waiting)) == (2, 1)


def test_the_last_arrived_is_preempted_and_computed_anew():
    scheduler = scheduler_of(num_blocks=6, budget=64)
    first = add(scheduler, "first", 11, max_tokens=12)
    last = add(scheduler, "last", 10, first_token=100, max_tokens=12)
    step(scheduler)
    step(scheduler)  # first fills its third block with the 12th token
    assert step(scheduler) == {"first": 1}  # the 13th needs a block; last gives all of its own
    assert (last.num_preemptions, last.num_computed_tokens, last.block_table) == (1, 0, [])
    assert list(scheduler.waiting) == [last]
    while first in scheduler.running:
        step(scheduler)
    scheduler.check_integrity()
    assert sum(step(scheduler).values()) >= 1
    assert scheduler.counters.num_preemptions == 1


def test_recomputation_is_left_out_of_the_hit_rate():
    scheduler = scheduler_of(num_blocks=6, budget=64)
    add(scheduler, "first", 11, max_tokens=12)
    add(scheduler, "last", 10, first_token=100, max_tokens=12)
    while scheduler.running or scheduler.waiting:
        step(scheduler)
    assert scheduler.counters.num_preemptions > 0
    assert scheduler.counters.prefix_cache_queries == 21
    assert scheduler.counters.prefix_cache_hits == 0
    assert scheduler.counters.prompt_tokens == 21


def test_a_second_request_takes_the_firsts_prefix():
    scheduler = scheduler_of(budget=64)
    add(scheduler, "first", 20)
    step(scheduler)
    again = add(scheduler, "again", 20)
    assert step(scheduler) == {"first": 1, "again": 4}
    assert again.num_cached_tokens == 16
    assert scheduler.counters.prefix_cache_hits == 16


def test_queue_time_is_taken_once_at_first_admission():
    scheduler = scheduler_of()
    add(scheduler, "r", 2, now=10.0)
    assert scheduler.schedule(now=12.5).queue_seconds == (2.5,)


@pytest.mark.parametrize(
    ("sampling", "tokens", "reason"),
    [
        ({"max_tokens": 2}, [5, 5], "length"),
        ({"stop_token_ids": (7,)}, [5, 7], "stop"),
        ({"stop_token_ids": (7,), "min_tokens": 3}, [7, 7, 7], "stop"),
    ],
)
def test_how_a_sequence_ends(sampling, tokens, reason):
    scheduler = scheduler_of()
    add(scheduler, "r", 2, **sampling)
    reasons = []
    for token in tokens:
        [progression] = scheduler.finish_step(scheduler.schedule(0.0), [token])
        reasons.append(progression.finish_reason)
    assert reasons == [None] * (len(tokens) - 1) + [reason]
    assert scheduler.blocks.num_used_blocks == 0


def test_the_context_ends_a_sequence():
    scheduler = scheduler_of(max_model_len=4)
    add(scheduler, "r", 2)
    batch = scheduler.schedule(0.0)
    assert scheduler.finish_step(batch, [1])[0].finish_reason is None
    assert scheduler.finish_step(scheduler.schedule(0.0), [1])[0].finish_reason == "length"


def test_a_row_without_a_token_fails_its_sequence_only():
    scheduler = scheduler_of()
    add(scheduler, "bad", 2)
    add(scheduler, "good", 2)
    bad, good = scheduler.finish_step(scheduler.schedule(0.0), [None, 5])
    assert (bad.finish_reason, good.finish_reason) == ("error", None)
    scheduler.check_integrity()
    assert [s.request_id for s in scheduler.running] == ["good"]


@pytest.mark.parametrize("prompt_len", [0, 200, 201])
def test_a_prompt_that_leaves_no_room_is_refused(prompt_len):
    with pytest.raises(RequestRefused, match=f"1 to 199 tokens.*got {prompt_len}"):
        add(scheduler_of(), "r", prompt_len)


def test_what_can_never_fit_the_cache_is_refused():
    with pytest.raises(RequestRefused, match="5 blocks of 4 tokens, got 6 blocks"):
        add(scheduler_of(num_blocks=5), "r", 11, max_tokens=10)
    add(scheduler_of(num_blocks=5), "r", 11, max_tokens=9)


def test_an_abort_frees_blocks_at_once_wherever_the_sequence_stands():
    scheduler = scheduler_of(max_num_seqs=1)
    add(scheduler, "running", 5)
    add(scheduler, "waiting", 5)
    step(scheduler)
    scheduler.abort([RequestId("waiting"), RequestId("running"), RequestId("unknown")])
    assert scheduler.blocks.num_used_blocks == 0
    assert not scheduler.running
    assert not scheduler.waiting
    scheduler.check_integrity()


def finishing_order(scheduler):
    """Run to the end: names in the order in which they ended."""
    order = []
    while scheduler.running or scheduler.waiting:
        batch = scheduler.schedule(0.0)
        for progression in scheduler.finish_step(batch, [999] * len(batch.sampling)):
            if progression.finish_reason is not None:
                order.append(progression.sequence.request_id)
    return order


def test_a_lower_priority_number_is_begun_earlier():
    scheduler = scheduler_of(max_num_seqs=1)
    for name, priority in (("a", 0), ("b", 5), ("c", -3), ("d", 0), ("e", -3)):
        add(scheduler, name, 3, priority=priority, max_tokens=2)
    assert finishing_order(scheduler) == ["c", "e", "a", "d", "b"]


def test_waiting_takes_nothing_from_those_that_run():
    scheduler = scheduler_of(max_num_seqs=1)
    add(scheduler, "running", 3, priority=9, max_tokens=4)
    step(scheduler)
    add(scheduler, "urgent", 3, priority=-9, max_tokens=1)
    assert step(scheduler) == {"running": 1}
    assert finishing_order(scheduler) == ["running", "urgent"]


def test_the_worst_priority_is_preempted_though_it_was_begun_first():
    scheduler = scheduler_of(num_blocks=6, budget=64)
    patient = add(scheduler, "patient", 10, priority=1, max_tokens=12)
    step(scheduler)
    urgent = add(scheduler, "urgent", 11, first_token=100, max_tokens=12)
    while not (patient.num_preemptions or urgent.num_preemptions):
        step(scheduler)
    assert (patient.num_preemptions, urgent.num_preemptions) == (1, 0)
    assert finishing_order(scheduler) == ["urgent", "patient"]


def test_the_preempted_comes_back_before_others_of_its_priority_and_after_better_ones():
    scheduler = scheduler_of(num_blocks=6, budget=64, max_num_seqs=2)
    first = add(scheduler, "first", 11, max_tokens=12, user="alice")
    second = add(scheduler, "second", 10, first_token=100, max_tokens=12, user="alice")
    while not second.num_preemptions:
        step(scheduler)
    bob = add(scheduler, "bob's first", 3, first_token=200, max_tokens=1, user="bob")
    urgent = add(scheduler, "urgent", 3, first_token=300, priority=-1, max_tokens=1)
    while second not in scheduler.running:
        assert not bob.admission
        step(scheduler)
    assert (first.admission, second.admission, urgent.admission) == (1, 2, 3), "ranks are kept"
    assert first.num_preemptions == 0
    finishing_order(scheduler)
    assert bob.admission == 4
