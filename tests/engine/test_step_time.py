"""The model of a step's time, fed with steps whose law is known; all times are virtual."""

import random

import pytest

from quire_engine.batch import Batch, Chunk
from quire_engine.block_manager import BlockManager
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.scheduler import Scheduler
from quire_engine.sequence import Sequence
from quire_engine.step_time import MIN_PREFILL_TOKENS, StepTime

BASE, DECODE, PROMPT, READ, PRODUCT = 0.02, 0.003, 0.0015, 2e-6, 4e-7
MOST = 512


def sequence_of(name, prompt_len, max_tokens=5000):
    return Sequence.of(
        AddRequest(
            request_id=RequestId(name),
            prompt_token_ids=tuple(range(prompt_len)),
            sampling=SamplingParams(temperature=0, max_tokens=max_tokens),
        ),
        arrival_time=0.0,
    )


def decoding(name="d", num_tokens=20):
    sequence = sequence_of(name, num_tokens - 1)
    sequence.token_ids.append(7)
    sequence.num_computed_tokens = num_tokens - 1
    return sequence


def contexts(num_decodes):
    return [19] * num_decodes


def batch_of(num_decodes, num_prefill=0, context=0):
    chunks = [Chunk(decoding(), 1, samples=True) for _ in range(num_decodes)]
    if num_prefill:
        prompt = sequence_of("p", context + num_prefill)
        prompt.num_computed_tokens = context
        chunks.append(Chunk(prompt, num_prefill, samples=True))
    return Batch(tuple(chunks))


def law(batch):
    """Seconds of a step on a machine that behaves."""
    seconds = BASE
    for chunk in batch.chunks:
        context = chunk.sequence.num_computed_tokens
        seconds += DECODE if chunk.sequence.is_decoding else PROMPT * chunk.num_tokens
        products = chunk.num_tokens * (context + chunk.num_tokens / 2)
        seconds += READ * context + PRODUCT * products
    return seconds


def taught(model, num_steps=300, noise=0.1, seed=3):
    generator = random.Random(seed)
    for _ in range(num_steps):
        batch = batch_of(
            generator.randrange(0, 9),
            generator.choice((0, 0, 16, 64, 200, 512)),
            generator.randrange(0, 4000),
        )
        if batch.chunks:
            model.observe(batch, law(batch) * generator.uniform(1 - noise, 1 + noise))
    return model


@pytest.mark.parametrize(
    ("num_decodes", "num_prefill", "context"), [(1, 0, 0), (8, 0, 0), (8, 64, 3000), (0, 512, 100)]
)
def test_what_a_step_takes_is_learned(num_decodes, num_prefill, context):
    model = taught(StepTime(2.0))
    expected = law(batch_of(num_decodes, num_prefill, context))
    assert model.seconds(contexts(num_decodes), [(num_prefill, context)]) == pytest.approx(
        expected, rel=0.1
    )


def test_a_step_that_was_held_up_moves_little():
    model = taught(StepTime(2.0))
    before = model.seconds(contexts(8))
    for _ in range(3):
        model.observe(batch_of(8), 40 * law(batch_of(8)))
    assert model.seconds(contexts(8)) == pytest.approx(before, rel=0.1)


def test_a_machine_that_became_slower_is_learned_anew():
    model = taught(StepTime(2.0))
    for _ in range(600):
        model.observe(batch_of(8), 3 * law(batch_of(8)))
    assert model.seconds(contexts(8)) == pytest.approx(3 * law(batch_of(8)), rel=0.15)


def test_no_step_makes_another_one_negative():
    model = StepTime(2.0)
    model.observe(batch_of(0, 512), 0.001)
    model.observe(batch_of(8), 5.0)
    model.observe(batch_of(1), 0.001)
    assert model.seconds([], [(512, 0)]) >= 0
    assert model.seconds(contexts(8)) >= model.seconds(contexts(1)) >= 0


@pytest.mark.parametrize(("slowdown", "num_decodes"), [(0.0, 8), (2.0, 0)])
def test_nothing_is_held_back_where_off_or_where_nothing_decodes(slowdown, num_decodes):
    allowance = taught(StepTime(slowdown)).allowance(contexts(num_decodes))
    allowance.take(MOST, 3000)
    assert allowance.tokens(0, MOST) == MOST
    assert not allowance.is_spent


def test_a_chunk_is_as_long_as_the_slowdown_allows_and_shorter_far_into_a_prompt():
    model = taught(StepTime(2.0), noise=0.0)
    alone = law(batch_of(8))
    for context in (0, 2000, 6000):
        tokens = model.allowance(contexts(8)).tokens(context, MOST)
        assert law(batch_of(8, tokens, context)) == pytest.approx(2 * alone, rel=0.1)
    assert model.allowance(contexts(8)).tokens(6000, MOST) < model.allowance(contexts(8)).tokens(
        0, MOST
    )


def test_chunks_of_several_prompts_share_what_the_slowdown_allows():
    model = taught(StepTime(2.0), noise=0.0)
    allowance = model.allowance(contexts(8))
    allowance.take(10, 2000)
    second = allowance.tokens(500, MOST)
    alone = law(batch_of(8))
    assert model.seconds(contexts(8), [(10, 2000), (second, 500)]) <= 2.02 * alone
    assert model.seconds(contexts(8), [(10, 2000), (second + 2, 500)]) > 2 * alone
    allowance.take(second + 2, 500)
    assert allowance.is_spent
    assert allowance.tokens(0, MOST) == 0


def test_each_prompt_that_is_there_brings_as_much_time_as_one_alone():
    model = taught(StepTime(1.5), noise=0.0)
    one, three = (model.allowance(contexts(8), count).tokens(0, MOST) for count in (1, 3))
    assert three == pytest.approx(3 * one, rel=0.1)


def test_a_backlog_of_prompts_comes_on_as_fast_as_one():
    """Six prompts behind eight decodes: steps to the last one's first token against one's."""

    def steps(num_prompts):
        scheduler = scheduler_of(taught(StepTime(1.75), noise=0.0))
        for number in range(8):
            scheduler.add(sequence_of(f"d{number}", 50))
        for _ in range(3):
            run_step(scheduler)
        prompts = [sequence_of(f"p{number}", 160) for number in range(num_prompts)]
        for prompt in prompts:
            scheduler.add(prompt)
        count = 0
        while not prompts[-1].num_generated_tokens:
            run_step(scheduler)
            count += 1
        return count

    assert steps(1) > 3
    assert steps(6) <= 2 * steps(1)


def test_a_prompt_comes_on_whatever_it_costs():
    model = StepTime(1.01)
    model.observe(batch_of(0, 512), 1000.0)
    model.observe(batch_of(1), 0.001)
    assert model.allowance(contexts(1)).tokens(0, MOST) == MIN_PREFILL_TOKENS
    assert model.allowance(contexts(1)).tokens(0, 2) == 2


def test_steps_of_decodes_alone_do_not_make_prompts_forgotten():
    model = taught(StepTime(2.0), noise=0.0)
    before = model.allowance(contexts(8)).tokens(1000, MOST)
    for _ in range(2000):
        model.observe(batch_of(8), law(batch_of(8)))
    assert model.allowance(contexts(8)).tokens(1000, MOST) == pytest.approx(before, rel=0.1)


def test_decodes_that_grew_old_cost_more_and_prompts_are_not_blamed_for_it():
    """Eight decodes from 20 to 1,000 tokens, a prompt's chunk beside every third."""
    model = StepTime(2.0)
    for step in range(1000):
        chunks = [Chunk(decoding(num_tokens=20 + step), 1, samples=True) for _ in range(8)]
        beside = batch_of(0, 8, 2 * step).chunks if step % 3 == 0 else ()
        batch = Batch((*chunks, *beside))
        model.observe(batch, law(batch))
    old = [1000] * 8
    alone = BASE + 8 * (DECODE + (READ + PRODUCT) * 1000)
    assert model.seconds(old) == pytest.approx(alone, rel=0.05)
    tokens = model.allowance(old).tokens(2000, MOST)
    assert READ * 2000 + tokens * (PROMPT + PRODUCT * 2000) == pytest.approx(alone, rel=0.15)


def scheduler_of(step_time):
    return Scheduler(
        BlockManager(1000, 16, enable_prefix_caching=False),
        max_num_seqs=16,
        token_budget=MOST,
        max_model_len=8192,
        step_time=step_time,
    )


def run_step(scheduler):
    """The tokens that each sequence got, by name."""
    batch = scheduler.schedule(0.0)
    got = {str(chunk.sequence.request_id): chunk.num_tokens for chunk in batch.chunks}
    scheduler.finish_step(batch, [9] * len(batch.sampling), law(batch))
    return got


def burst_steps(step_time):
    """How many steps 16 prompts of 200 tokens take that come at once."""
    scheduler = scheduler_of(step_time)
    for number in range(16):
        scheduler.add(sequence_of(f"b{number}", 200, max_tokens=20))
    steps = 0
    while scheduler.waiting or scheduler.running:
        run_step(scheduler)
        steps += 1
    return steps


def test_prompts_that_came_at_once_wait_for_none_of_each_others_answers():
    assert burst_steps(taught(StepTime(1.75))) == burst_steps(StepTime(0.0))


def test_a_prompt_that_came_while_one_that_decodes_was_in_its_first_step_is_not_held_back():
    """As over HTTP: the first request runs at once, the others of a burst are read behind it."""
    scheduler = scheduler_of(taught(StepTime(1.75)))
    scheduler.add(sequence_of("first", 100))
    assert run_step(scheduler) == {"first": 100}
    scheduler.add(sequence_of("with it", 5000))
    assert run_step(scheduler) == {"first": 1, "with it": MOST - 1}
    scheduler.add(sequence_of("later", 5000))
    assert run_step(scheduler) == {"first": 1, "with it": MOST - 1}
    scheduler.abort(["with it"])
    assert 0 < run_step(scheduler)["later"] < MOST / 4


def test_one_that_decodes_gets_its_token_beside_an_older_prompt_that_may_take_all():
    """`prompt` is held back for `stream`, so `late` overtakes it; then nothing holds it back."""
    scheduler = scheduler_of(taught(StepTime(1.75)))
    scheduler.add(sequence_of("stream", 20))
    run_step(scheduler)
    run_step(scheduler)
    scheduler.add(sequence_of("prompt", 6000))
    run_step(scheduler)
    scheduler.add(sequence_of("late", 1))
    while "late" not in run_step(scheduler):
        pass
    run_step(scheduler)
    scheduler.abort(["stream"])
    assert run_step(scheduler) == {"prompt": MOST - 1, "late": 1}


@pytest.mark.parametrize("num_waiting", [1, 2])
def test_what_a_new_prompt_finds_cached_is_counted_before_its_first_chunk(num_waiting):
    """3,200 tokens found: to read their keys alone takes a fifth of the step."""
    scheduler = Scheduler(
        BlockManager(1000, 16, enable_prefix_caching=True),
        max_num_seqs=16,
        token_budget=MOST,
        max_model_len=8192,
        step_time=taught(StepTime(1.75), noise=0.0),
    )
    steps = []

    def step():
        batch = scheduler.schedule(0.0)
        steps.append(law(batch))
        scheduler.finish_step(batch, [9] * len(batch.sampling), steps[-1])

    scheduler.add(sequence_of("cached", 3200, max_tokens=1))
    while scheduler.waiting or scheduler.running:
        step()
    for number in range(8):
        scheduler.add(sequence_of(f"d{number}", 1))
    for _ in range(3):
        step()
    alone = steps[-1]
    prompts = [sequence_of(f"long{number}", 4000) for number in range(num_waiting)]
    for prompt in prompts:
        scheduler.add(prompt)
    step()
    assert prompts[0].num_cached_tokens == 3200
    assert alone < steps[-1] <= 1.1 * (1 + 0.75 * num_waiting) * alone
    assert prompts[0].num_computed_tokens > 3200


@pytest.mark.parametrize("num_decodes", [1, 8])
def test_decodes_beside_a_long_prompt_keep_their_pace(num_decodes):
    """From a start that knows nothing: prompts, decodes, then 4,000 tokens beside them."""
    generator = random.Random(1)
    scheduler = scheduler_of(StepTime(1.75))

    def step():
        batch = scheduler.schedule(0.0)
        seconds = law(batch) * generator.uniform(0.95, 1.05)
        scheduler.finish_step(batch, [9] * len(batch.sampling), seconds)
        return seconds

    for number in range(num_decodes):
        scheduler.add(sequence_of(f"d{number}", 100))
    for _ in range(60):
        step()
    alone = sorted(step() for _ in range(100))
    prompt = sequence_of("long", 4000)
    scheduler.add(prompt)
    beside = []
    while not prompt.num_generated_tokens:
        beside.append(step())
    beside.sort()
    assert beside[-1 - len(beside) // 100] <= 2 * alone[-2]
    work = 4000 * (PROMPT + 2000 * PRODUCT)
    least = work / (0.75 * alone[50])  # steps, were each as long as it may be and reading free
    assert least < len(beside) < 2.5 * least
