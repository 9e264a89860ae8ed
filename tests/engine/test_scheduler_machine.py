"""Scheduler and block manager as a state machine: no leak, no starvation, no wrong answer."""

from itertools import groupby

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire_engine.block_manager import BlockManager
from quire_engine.errors import RequestRefused
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.scheduler import Scheduler
from quire_engine.sequence import Sequence
from quire_engine.testing import FakeModel, complete

BLOCK_SIZE = 4
NUM_BLOCKS = 9
TOKEN_BUDGET = 11
MAX_NUM_SEQS = 4
MAX_MODEL_LEN = 30


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, steps run, clients leave, in any order."""

    def __init__(self) -> None:
        super().__init__()
        blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE, enable_prefix_caching=True)
        self.scheduler = Scheduler(
            blocks,
            max_num_seqs=MAX_NUM_SEQS,
            token_budget=TOKEN_BUDGET,
            max_model_len=MAX_MODEL_LEN,
        )
        self.model = FakeModel(BLOCK_SIZE, vocab_size=3)
        self.live: dict[RequestId, Sequence] = {}
        self.arrivals: dict[RequestId, int] = {}
        self.num_finished = 0

    # Prompts over two tokens only, so that prefixes meet; the answers' vocabulary is small too.
    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=0, max_size=MAX_MODEL_LEN + 1),
        max_tokens=st.integers(1, 12),
        salt=st.sampled_from(["", "", "tenant"]),
        adapter=st.sampled_from(["", "", "one", "two"]),
    )
    def add(self, prompt: list[int], max_tokens: int, salt: str, adapter: str) -> None:
        request_id = RequestId(str(len(self.arrivals)))
        self.arrivals[request_id] = len(self.arrivals)
        request = AddRequest(
            request_id=request_id,
            prompt_token_ids=tuple(prompt),
            sampling=SamplingParams(temperature=0, max_tokens=max_tokens),
            cache_salt=salt,
            adapter=adapter,
        )
        arrival_time = float(len(self.arrivals))
        sequence = Sequence.of(request, arrival_time, adapter_hash=adapter.encode())
        try:
            self.scheduler.add(sequence)
        except RequestRefused:
            assert not 0 < len(prompt) < MAX_MODEL_LEN
        else:
            self.live[request_id] = sequence

    @precondition(lambda self: self.live)
    @rule(choice=st.integers(0, 1000))
    def abort(self, choice: int) -> None:
        request_id = list(self.live)[choice % len(self.live)]
        sequence = self.live.pop(request_id)
        self.scheduler.abort([request_id, RequestId("unknown")])
        assert sequence.block_table == []

    @precondition(lambda self: self.live)
    @rule()
    def step(self) -> None:
        first = next(iter(self.live.values()))
        progress_before = (first.num_generated_tokens, first.num_computed_tokens)
        batch = self.scheduler.schedule(now=1e6)
        assert 0 < batch.num_tokens <= TOKEN_BUDGET
        assert len({id(chunk.sequence) for chunk in batch.chunks}) == len(batch.chunks)
        adapters = [chunk.sequence.adapter for chunk in batch.chunks]
        assert len(list(groupby(adapters))) == len(set(adapters)), "side by side"
        assert all(chunk.num_tokens > 0 for chunk in batch.chunks)
        tokens = self.model.next_tokens(batch)
        for progression in self.scheduler.finish_step(batch, tokens):
            if progression.finish_reason is not None:
                self.finish(progression.sequence)
        assert (first.num_generated_tokens, first.num_computed_tokens) > progress_before

    @rule()
    def reset_prefix_cache(self) -> None:
        self.scheduler.blocks.reset_prefix_cache()

    def finish(self, sequence: Sequence) -> None:
        del self.live[sequence.request_id]
        self.num_finished += 1
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        room = MAX_MODEL_LEN - len(prompt)
        num_tokens = min(sequence.sampling.max_tokens, room)
        expected = complete(prompt, num_tokens, 3, sequence.cache_salt, sequence.adapter)
        assert sequence.token_ids[len(prompt) :] == expected

    @invariant()
    def nothing_leaks(self) -> None:
        self.scheduler.check_integrity()

    @invariant()
    def order_of_arrival_holds(self) -> None:
        order = [self.arrivals[s.request_id] for s in self.scheduler.running]
        order += [self.arrivals[s.request_id] for s in self.scheduler.waiting]
        assert order == sorted(order)
        assert len(self.scheduler.running) <= MAX_NUM_SEQS
        assert len(order) == len(self.live)

    def teardown(self) -> None:
        while self.live:  # each step moves the first-arrived one, so this ends
            self.step()
        assert self.scheduler.blocks.num_used_blocks == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
