"""Users of one engine, when more is asked of it than it can give."""

from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.block_manager import BlockManager
from quire_engine.fair_shares import FairShares
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.scheduler import Scheduler
from quire_engine.sequence import Sequence

SEATS, MAX_MODEL_LEN = 2, 32
BOUND = SEATS * MAX_MODEL_LEN  # what one user's begun sequences can still be given


class Crowd:
    """A small engine's scheduler, its requests, and what each user has been given."""

    def __init__(self, num_blocks=16):
        self.scheduler = Scheduler(
            BlockManager(num_blocks, 4, enable_prefix_caching=False),
            max_num_seqs=SEATS,
            token_budget=16,
            max_model_len=MAX_MODEL_LEN,
        )
        self.given = Counter()
        self._numbers = count()

    def ask(self, user, prompt_len, answer_len, priority=0):
        sequence = Sequence.of(
            AddRequest(
                request_id=RequestId(f"{user}{next(self._numbers)}"),
                prompt_token_ids=(1,) * prompt_len,
                sampling=SamplingParams(temperature=0, max_tokens=answer_len),
                priority=priority,
                user=user,
            ),
            arrival_time=0.0,
        )
        self.scheduler.add(sequence)
        return sequence

    def step(self):
        new = {id(s) for s in self.scheduler.waiting if not s.admission}
        batch = self.scheduler.schedule(0.0)
        for sequence in self.scheduler.running:
            if id(sequence) in new:
                self.given[sequence.user] += sequence.num_prompt_tokens
        for progression in self.scheduler.finish_step(batch, [9] * len(batch.sampling)):
            self.given[progression.sequence.user] += 1
        self.scheduler.check_integrity()

    def waiting_users(self):
        return {s.user for s in self.scheduler.waiting if not s.admission}


lengths = st.tuples(st.integers(1, 20), st.integers(1, 11))


@given(
    st.lists(lengths, min_size=30, max_size=60),
    st.lists(lengths, min_size=30, max_size=60),
    st.integers(9, 16),
)
@settings(max_examples=40, deadline=None)
def test_two_who_both_wait_are_given_the_same(first, second, num_blocks):
    """One's burst is there first, whole; the other's sizes are quite others."""
    crowd = Crowd(num_blocks)
    for user, requests in (("a", first), ("b", second)):
        for prompt_len, answer_len in requests:
            crowd.ask(user, prompt_len, answer_len)
    while crowd.waiting_users() == {"a", "b"}:
        crowd.step()
        assert abs(crowd.given["a"] - crowd.given["b"]) <= BOUND


def test_that_bound_is_small_beside_what_is_given():
    crowd = Crowd()
    for user, prompt_len, answer_len in [("a", 20, 10)] * 100 + [("b", 2, 3)] * 600:
        crowd.ask(user, prompt_len, answer_len)
    while crowd.waiting_users() == {"a", "b"}:
        crowd.step()
        assert abs(crowd.given["a"] - crowd.given["b"]) <= BOUND
    assert min(crowd.given.values()) > 20 * BOUND


def test_a_user_who_comes_late_does_not_wait_for_anothers_burst():
    crowd = Crowd()
    for _ in range(200):
        crowd.ask("a", 8, 8)
    for _ in range(100):
        crowd.step()
    mine = crowd.ask("b", 8, 8)
    steps = 0
    while not mine.admission:
        crowd.step()
        steps += 1
    assert steps <= 8, "the next seat is b's"


def test_idle_time_earns_nothing():
    crowd = Crowd()
    for user in "abc":
        crowd.ask(user, 4, 4)
    for _ in range(400):
        crowd.ask("a", 8, 8)
        crowd.ask("b", 8, 8)
    for _ in range(500):
        crowd.step()
    before = crowd.given.copy()
    assert before["c"] == 8
    for _ in range(400):
        crowd.ask("c", 8, 8)
    for _ in range(300):
        crowd.step()
    gained = {user: crowd.given[user] - before[user] for user in "abc"}
    assert max(gained.values()) - min(gained.values()) <= 2 * BOUND
    assert min(gained.values()) > 3 * BOUND


def test_new_users_without_end_pass_by_nobody_for_ever():
    crowd = Crowd()
    for _ in range(20):
        crowd.ask("a", 20, 10)
    for _ in range(60):
        crowd.step()
    last = crowd.ask("a", 20, 10)
    for number in range(5000):
        crowd.ask(f"new{number}", 4, 2)
        crowd.step()
        if last.admission:
            break
    assert last.admission


@pytest.mark.parametrize("user", ["a", "b"])
def test_a_prompt_that_needs_all_the_room_is_not_passed_by_for_ever(user):
    crowd = Crowd(num_blocks=8)
    for _ in range(5):
        crowd.ask("b", 3, 8)
    crowd.step()
    long = crowd.ask(user, 30, 1)
    for _ in range(200):
        crowd.ask("b", 3, 8)
        crowd.step()
    assert long.admission


def test_the_order_of_arrival_is_kept_within_a_user():
    crowd = Crowd()
    mine = [crowd.ask(user, 3, 3) for user in "abab" * 10]
    while crowd.scheduler.waiting:
        crowd.step()
    for user in "ab":
        admissions = [s.admission for s in mine if s.user == user]
        assert admissions == sorted(admissions)


def test_what_is_remembered_of_users_does_not_grow():
    shares = FairShares()
    for number in range(10_000):
        user = f"u{number}"
        shares.enter(user)
        shares.begin(user, 10)
        shares.charge(user, 50)
    assert len(shares._served) < 10


def test_who_leaves_the_line_is_charged_nothing():
    shares = FairShares()
    for user in "ab":
        shares.enter(user)
    shares.leave("a")
    assert shares.served("a") == shares.served("b") == 0
    shares.begin("b", 10)
    assert shares.served("b") == 10
