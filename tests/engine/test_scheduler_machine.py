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
from quire_engine.step_time import StepTime
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
            step_time=StepTime(1.5),
        )
        self.model = FakeModel(BLOCK_SIZE, vocab_size=3)
        self.live: dict[RequestId, Sequence] = {}
        self.arrivals: dict[RequestId, int] = {}
        self.num_finished = 0
        self.begun: set[RequestId] = set()

    # Prompts over two tokens only, so that prefixes meet; the answers' vocabulary is small too.
    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=0, max_size=MAX_MODEL_LEN + 1),
        max_tokens=st.integers(1, 12),
        salt=st.sampled_from(["", "", "tenant"]),
        adapter=st.sampled_from(["", "", "one", "two"]),
        priority=st.sampled_from([0, 0, -1, 5]),
        user=st.sampled_from(["", "alice", "bob"]),
    )
    def add(
        self, prompt: list[int], max_tokens: int, salt: str, adapter: str, priority: int, user: str
    ) -> None:
        request_id = RequestId(str(len(self.arrivals)))
        self.arrivals[request_id] = len(self.arrivals)
        request = AddRequest(
            request_id=request_id,
            prompt_token_ids=tuple(prompt),
            sampling=SamplingParams(temperature=0, max_tokens=max_tokens),
            cache_salt=salt,
            adapter=adapter,
            priority=priority,
            user=user,
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
    @rule(seconds=st.sampled_from([0.0, 0.001, 0.05, 30.0]))
    def step(self, seconds: float = 0.05) -> None:
        running = list(self.scheduler.running)
        preempted_before = {id(s): s.num_preemptions for s in self.live.values()}
        batch = self.scheduler.schedule(now=1e6)
        assert 0 < batch.num_tokens <= TOKEN_BUDGET
        assert len({id(chunk.sequence) for chunk in batch.chunks}) == len(batch.chunks)
        adapters = [chunk.sequence.adapter for chunk in batch.chunks]
        assert len(list(groupby(adapters))) == len(set(adapters)), "side by side"
        assert all(chunk.num_tokens > 0 for chunk in batch.chunks)
        if running:  # else the first in line was begun, as the batch is not empty
            assert any(chunk.sequence is running[0] for chunk in batch.chunks), "nobody starves"
        self.check_preemptions(preempted_before)
        self.check_admissions()
        tokens = self.model.next_tokens(batch)
        for progression in self.scheduler.finish_step(batch, tokens, seconds):
            if progression.finish_reason is not None:
                self.finish(progression.sequence)

    def check_preemptions(self, before: dict[int, int]) -> None:
        """Who was preempted just now ranks behind all that still run."""
        victims = [s for s in self.live.values() if s.num_preemptions > before[id(s)]]
        last = self.scheduler.running[-1].rank if self.scheduler.running else (-10, 0)
        assert all(victim.rank > last and not victim.block_table for victim in victims)

    def check_admissions(self) -> None:
        """Who was begun just now had nobody before it in line that still waits."""
        waiting = list(self.scheduler.waiting)
        for sequence in [s for s in self.scheduler.running if s.request_id not in self.begun]:
            self.begun.add(sequence.request_id)
            for other in waiting:
                assert other.priority >= sequence.priority
                if other.priority == sequence.priority:
                    assert not other.admission, "the preempted come back first"
                    assert other.user != sequence.user or other.arrival > sequence.arrival

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
    def everybody_is_somewhere_once(self) -> None:
        ranks = [sequence.rank for sequence in self.scheduler.running]
        assert ranks == sorted(set(ranks))
        assert len(ranks) <= MAX_NUM_SEQS
        everybody = [*self.scheduler.running, *self.scheduler.waiting]
        assert {s.request_id for s in everybody} == self.live.keys()
        assert len(everybody) == len(self.scheduler.running) + len(self.scheduler.waiting)
        assert len(everybody) == len(self.live)

    def teardown(self) -> None:
        while self.live:  # each step moves the one of the first rank, so this ends
            self.step()
        assert self.scheduler.blocks.num_used_blocks == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
