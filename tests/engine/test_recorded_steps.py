"""Steps that are replayed against the same steps run call by call: bit for bit."""

import pytest
import torch

import quire_kernels as kernels
from quire_engine.activations import workspace_values
from quire_engine.adapter_loader import load_adapter
from quire_engine.batch import Batch, Chunk
from quire_engine.block_manager import BlockManager
from quire_engine.config import EngineConfig
from quire_engine.engine import Engine
from quire_engine.lazy_memory import lazy_zeros
from quire_engine.loader import load_model
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.recorded_steps import MAX_SEQS, RecordedSteps
from quire_engine.runner import ModelRunner, build_inputs
from quire_engine.scheduler import Scheduler
from quire_engine.sequence import Sequence

pytestmark = pytest.mark.skipif(kernels.isa() == "torch", reason="no compiled variant")

CPU = torch.device("cpu")
BLOCK_SIZE, NUM_BLOCKS, BUDGET = 4, 128, 80
FAMILIES = ("llama", "llama-scaled", "llama-untied-bias", "qwen2", "qwen2-tied", "qwen3")


@pytest.fixture
def replays(monkeypatch):
    """One entry for each replay: whether all calls were made."""
    made, replay = [], kernels.Recording.replay

    def counted(recording):
        made.append(replay(recording))
        return made[-1]

    monkeypatch.setattr(kernels.Recording, "replay", counted)
    return made


class Twins:
    """Two runners that get the same batches, of which one replays and one never does."""

    def __init__(self, model, adapters=None, num_blocks=NUM_BLOCKS):
        self.vocab_size = model.decoder.config.vocab_size
        size = workspace_values(model.decoder.config, BUDGET, BUDGET)
        runners = [
            ModelRunner(model, num_blocks, BLOCK_SIZE, lazy_zeros((size,)), adapters)
            for _ in range(2)
        ]
        self.replaying, self.plain = runners
        self.plain._recorded = None
        self.decode_sizes = []

    def run(self, batch):
        if all(chunk.num_tokens == 1 and chunk.samples for chunk in batch.chunks):
            self.decode_sizes.append(len(batch.chunks))
        logits = self.replaying.run(batch)
        assert torch.equal(logits, self.plain.run(batch))
        return logits


def answer(twins, prompts, num_blocks=NUM_BLOCKS, adapters=()):
    """Requests that come one after another, two steps apart, and end at different lengths."""
    blocks = BlockManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=True)
    scheduler = Scheduler(blocks, max_num_seqs=8, token_budget=BUDGET, max_model_len=256)
    hashes = dict.fromkeys(adapters, b"content")
    engine = Engine(scheduler, twins, clock=lambda: 0.0, adapter_hashes=hashes)
    for number, prompt in enumerate(prompts):
        engine.add_request(
            AddRequest(
                request_id=RequestId(str(number)),
                prompt_token_ids=prompt,
                sampling=SamplingParams(temperature=0, max_tokens=10 + 7 * number),
                adapter=adapters[0] if adapters and number < len(prompts) - 1 else "",
            )
        )
        engine.step(), engine.step()
    while engine.num_pending:
        for output in engine.step().outputs:
            assert not output.error
    return scheduler


def prompts(*lengths):
    torch.manual_seed(7)
    return [tuple(torch.randint(0, 128, (length,)).tolist()) for length in lengths]


def model_of(folder, **fields):
    return load_model(EngineConfig(model=str(folder), **fields), CPU)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_generation_is_bitwise_the_same(family, quantization, tiny_model, replays):
    """In batches that grow and shrink, over tables that grow; each size is recorded once."""
    model = model_of(tiny_model(family, torch.bfloat16), quantization=quantization)
    twins = Twins(model)
    answer(twins, prompts(3, 40, 17, 1))
    sizes = set(twins.decode_sizes)
    assert sizes >= {1, 2, 3}
    assert len(replays) == len(twins.decode_sizes) - len(sizes)
    assert all(replays)


def test_preempted_sequences_are_bitwise_the_same(tiny_model, replays):
    twins = Twins(model_of(tiny_model()), num_blocks=16)
    scheduler = answer(twins, prompts(9, 20, 17, 12), num_blocks=16)
    assert scheduler.counters.num_preemptions > 0
    assert all(replays)


def test_steps_with_adapters_in_between_are_run_call_by_call(tiny_model, make_adapter, replays):
    folder = tiny_model()
    model = model_of(folder)
    adapters = {"a": load_adapter(make_adapter(folder, "a"), model, None)}
    twins = Twins(model, adapters)
    answer(twins, prompts(5, 6, 7), adapters=("a",))
    assert 0 < len(replays) < len(twins.decode_sizes) - 3  # the last one alone, at the end


def test_threads_that_are_set_between_steps_change_nothing(tiny_model, replays):
    twins, before = Twins(model_of(tiny_model())), torch.get_num_threads()
    batch = Batch((decode(0), decode(1)))
    try:
        for num_threads in (1, 3):
            kernels.backend("cpu").set_num_threads(num_threads)
            twins.run(batch)
    finally:
        kernels.backend("cpu").set_num_threads(before)
    assert replays == [True]


def decode(number, num_tokens=9, token_id=5):
    """A sequence whose last token is still to be computed; each number has blocks of its own."""
    sequence = Sequence(
        request_id=RequestId(str(number)), sampling=SamplingParams(), cache_salt="",
        arrival_time=0.0, num_prompt_tokens=1, token_ids=[1] * (num_tokens - 1) + [token_id],
        block_table=[3 * number, 3 * number + 1, 3 * number + 2],
        num_computed_tokens=num_tokens - 1,
    )  # fmt: skip
    return Chunk(sequence, 1, samples=True)


def broken(what):
    chunk = decode(1)
    sequence = chunk.sequence
    if what == "id":
        sequence.token_ids[-1] = 128
    elif what == "block":
        sequence.block_table[0] = NUM_BLOCKS
    elif what == "slot":
        sequence.block_table[2] = NUM_BLOCKS
    elif what == "table":  # keys that are there, in a block that nobody gave it
        sequence.num_computed_tokens, sequence.token_ids = 300, [1] * 301
        sequence.block_table = [3] * 76
    return Batch((decode(0), chunk))


@pytest.mark.parametrize("recorded_before", [False, True])
@pytest.mark.parametrize("what", ["id", "block", "slot", "table"])
def test_a_step_that_a_kernel_refuses_raises_as_ever_and_leaves_no_trace(
    what, recorded_before, tiny_model, replays
):
    twins = Twins(model_of(tiny_model()))
    good = Batch((decode(0), decode(1)))
    if recorded_before:
        twins.run(good)
    with pytest.raises(kernels.KernelInputError) as expected:
        twins.plain.run(broken(what))
    with pytest.raises(kernels.KernelInputError) as error:
        twins.replaying.run(broken(what))
    assert str(error.value) == str(expected.value)
    assert not any(replays)
    for _ in range(2):
        twins.run(good)
    assert replays[-1]


def test_keys_beyond_a_table_are_refused_after_a_step_of_longer_tables(tiny_model):
    """A wider table is in the recording's memory then, and what it names is another's."""
    twins = Twins(model_of(tiny_model()))
    for _ in range(2):
        twins.run(Batch((decode(0, num_tokens=12),)))
    inputs = build_inputs((decode(0, num_tokens=12),), BLOCK_SIZE)
    inputs.block_tables.resize_(1, 2)
    with torch.inference_mode():
        assert twins.replaying._recorded.run(inputs) is None


def test_more_sequences_than_are_recorded_run_call_by_call(tiny_model, replays):
    twins = Twins(model_of(tiny_model()))
    for count in (MAX_SEQS, MAX_SEQS + 1):
        for _ in range(2):
            twins.run(Batch(tuple(decode(number) for number in range(count))))
    assert replays == [True]


def test_a_forward_that_torch_has_a_part_in_is_never_replayed(replays):
    calls = []

    def forward(inputs):
        calls.append(inputs)
        return inputs.token_ids + 1.0

    steps = RecordedSteps(forward, max_blocks=3)
    for token_id in (5, 6):
        logits = steps.run(build_inputs((decode(0, token_id=token_id),), BLOCK_SIZE))
    assert (len(calls), logits, replays) == (1, None, [])
