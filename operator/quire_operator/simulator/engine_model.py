"""A queueing model of one engine: continuous batching with seats, a token budget and a KV cache.

As the engine's scheduler: each step gives every decoding sequence one token, and what is left of
the budget goes to prompts, in order of arrival; a sequence is admitted while a seat is free and its
tokens fit the cache; when the cache runs out, the last one admitted gives its tokens back and
waits, first in line. Left out: shared prefixes, blocks (tokens are counted one by one).

A step takes decodeStepSeconds(sequences) + prompt tokens / prefillTokensPerSecond. Between two
changes of the batch all steps are alike, so they are taken together: an hour costs a few thousand
operations instead of a hundred thousand steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush

from quire_operator.simulator.scenario import Engine

# The engine's own buckets, as its /metrics page shows them.
TTFT_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5,
               10, 20, 40, 80, 160, 640, 2560, math.inf)  # fmt: skip
_EPSILON = 1e-9


class Outcome(StrEnum):
    """How a request ended."""

    UNFINISHED = "unfinished"  # not over when the scenario was
    ANSWERED = "answered"
    CUT = "cut"  # its pod died, or drained for too long
    REFUSED = "refused"  # no pod was ready, and no gateway held it
    TOO_LONG = "tooLong"  # prompt and answer exceed the KV cache


@dataclass(slots=True, eq=False)
class Request:
    """One request as its client sees it; times are seconds of the simulation."""

    arrived: float
    prompt_tokens: int
    answer_tokens: int
    accepted: float = 0.0  # when a pod got it: where the pod's own time to first token begins
    first_token: float | None = None
    finished: float | None = None
    outcome: Outcome = Outcome.UNFINISHED

    @property
    def ttft_seconds(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.arrived


@dataclass(slots=True, eq=False)
class _Sequence:
    """A request in the engine. `todo`: tokens to compute before its next one comes."""

    request: Request
    todo: int
    generated: int = 0
    since_step: int = 0  # of the counter: the step after which `generated` was right
    last_step: int = -1  # of the counter: the one that finishes it; -1 while it does not decode


@dataclass(slots=True)
class StepTimes:
    """Seconds of a step by its number of sequences."""

    table: dict[int, float]
    _known: dict[int, float] = field(default_factory=dict)

    def __call__(self, num_sequences: int) -> float:
        if num_sequences not in self._known:
            self._known[num_sequences] = self._worked_out(num_sequences)
        return self._known[num_sequences]

    def _worked_out(self, num_sequences: int) -> float:
        sizes = sorted(self.table)
        if num_sequences <= sizes[0] or len(sizes) == 1:
            return self.table[sizes[0]]
        upper = min(bisect_left(sizes, num_sequences), len(sizes) - 1)
        low, high = sizes[upper - 1], sizes[upper]
        slope = (self.table[high] - self.table[low]) / (high - low)
        return self.table[low] + slope * (num_sequences - low)


class EngineModel:
    """One engine from its start on. Time goes forward only, by `advance`."""

    def __init__(self, engine: Engine, now: float) -> None:
        self._engine = engine
        self._step_seconds = StepTimes(engine.decode_step_seconds)
        self.started = self._time = now
        self._step_ends: float | None = None  # of the step that is under way
        self._steps = 0
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[_Sequence, None] = {}  # in order of admission
        self._prefilling: dict[_Sequence, int] = {}  # of the running ones -> tokens in this step
        self._finishing: list[tuple[int, int, _Sequence]] = []  # heap by last step
        self._num_decoding = 0
        self._kv_used = 0
        self._order = 0
        self.ttft_counts = [0] * len(TTFT_BOUNDS)
        self.ttft_sum = 0.0
        self.num_preemptions = 0
        self.num_finished = 0
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0

    # ---- what its /metrics page says ----

    @property
    def max_num_seqs(self) -> int:
        return self._engine.max_num_seqs

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def in_flight(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def kv_utilization(self) -> float:
        return self._kv_used / self._engine.kv_tokens

    # ---- what happens to it ----

    def accept(self, request: Request, now: float) -> None:
        """Takes a request in. `advance(now)` comes before."""
        request.accepted = now
        if request.prompt_tokens + request.answer_tokens > self._engine.kv_tokens:
            request.outcome = Outcome.TOO_LONG
            return
        self._waiting.append(_Sequence(request, todo=request.prompt_tokens))

    def abort(self) -> None:
        """Cuts all that is in flight."""
        for sequence in (*self._running, *self._waiting):
            sequence.request.outcome = Outcome.CUT
        self._waiting.clear()
        self._running.clear()
        self._prefilling.clear()
        self._finishing.clear()
        self._num_decoding = self._kv_used = 0
        self._step_ends = None

    def advance(self, now: float) -> None:
        """Does every step that ends by `now`, and begins the one that is then under way."""
        while self._step_ends is None or self._step_ends <= now:
            if self._step_ends is not None:
                self._end_step(self._step_ends)
            if not self.in_flight:
                self._time = max(self._time, now)
                return
            self._make_room()
            self._admit()
            if self._prefilling or not self._decode_until(now):
                self._begin_step()

    def check_integrity(self) -> None:
        """Every running sequence is accounted for, and so is each token of the cache."""
        assert len(self._running) == self._num_decoding + len(self._prefilling)
        assert self.num_running <= self._engine.max_num_seqs
        assert 0 <= self._kv_used <= self._engine.kv_tokens
        held = sum(map(self._held, self._running))
        assert held == self._kv_used, f"{held} tokens are held, {self._kv_used} are counted"

    # ---- steps ----

    def _make_room(self) -> None:
        """For one more token of each sequence, at the cost of the last ones admitted."""
        while self._kv_used + len(self._running) > self._engine.kv_tokens:
            self._preempt(next(reversed(self._running)))

    def _preempt(self, sequence: _Sequence) -> None:
        self._kv_used -= self._held(sequence)
        del self._running[sequence]
        if sequence in self._prefilling:
            del self._prefilling[sequence]
        else:
            sequence.generated += self._steps - sequence.since_step
            self._num_decoding -= 1
        sequence.last_step = -1
        sequence.todo = sequence.request.prompt_tokens + sequence.generated
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _held(self, sequence: _Sequence) -> int:
        """Tokens of the cache: the whole prompt from admission on, then one more a step."""
        tokens = sequence.request.prompt_tokens + sequence.generated
        return tokens + (self._steps - sequence.since_step if sequence.last_step >= 0 else 0)

    def _admit(self) -> None:
        """Gives out the step's tokens to prompts, those begun first."""
        budget = self._engine.tokens_per_step - self._num_decoding
        for sequence in self._prefilling:
            self._prefilling[sequence] = min(budget, sequence.todo)
            budget -= self._prefilling[sequence]
        while budget and self._waiting and self._fits(self._waiting[0]):
            sequence = self._waiting.popleft()
            self._running[sequence] = None
            self._kv_used += sequence.todo
            self._prefilling[sequence] = min(budget, sequence.todo)
            budget -= self._prefilling[sequence]

    def _fits(self, sequence: _Sequence) -> bool:
        after_this_step = self._kv_used + len(self._running) + sequence.todo + 1
        return (
            len(self._running) < self._engine.max_num_seqs
            and after_this_step <= self._engine.kv_tokens
        )

    def _decode_until(self, now: float) -> bool:
        """All the steps, alike, that end by `now` before the batch changes; whether there were."""
        seconds = self._step_seconds(self._num_decoding)
        until_full = (self._engine.kv_tokens - self._kv_used) // self._num_decoding
        until_now = int((now - self._time) / seconds + _EPSILON)
        num_steps = min(self._next_finish() - self._steps, until_full, until_now)
        if num_steps <= 0:
            return False
        self._time += num_steps * seconds
        self._count_steps(num_steps)
        return True

    def _next_finish(self) -> int:
        while self._finishing[0][2].last_step != self._finishing[0][0]:
            heappop(self._finishing)  # it was preempted since
        return self._finishing[0][0]

    def _begin_step(self) -> None:
        seconds = self._step_seconds(len(self._running))
        seconds += sum(self._prefilling.values()) / self._engine.prefill_tokens_per_second
        self._step_ends = self._time + seconds

    def _end_step(self, now: float) -> None:
        self._time, self._step_ends = now, None
        self._count_steps(1)
        for sequence, num_tokens in list(self._prefilling.items()):
            sequence.todo -= num_tokens
            self.num_prompt_tokens += num_tokens
            if not sequence.todo:
                del self._prefilling[sequence]
                self._start_decoding(sequence)

    def _count_steps(self, num_steps: int) -> None:
        self._steps += num_steps
        self._kv_used += num_steps * self._num_decoding
        self.num_generated_tokens += num_steps * self._num_decoding
        while self._finishing and self._finishing[0][0] <= self._steps:
            last_step, _order, sequence = heappop(self._finishing)
            if sequence.last_step == last_step:
                self._num_decoding -= 1
                self._finish(sequence, sequence.request.answer_tokens)

    def _start_decoding(self, sequence: _Sequence) -> None:
        request = sequence.request
        if request.first_token is None:
            request.first_token = self._time
            self._observe(self._time - request.accepted)
        sequence.generated += 1
        self._kv_used += 1
        self.num_generated_tokens += 1
        if sequence.generated >= request.answer_tokens:
            self._finish(sequence, sequence.generated)
            return
        sequence.since_step = self._steps
        sequence.last_step = self._steps + request.answer_tokens - sequence.generated
        self._num_decoding += 1
        self._order += 1
        heappush(self._finishing, (sequence.last_step, self._order, sequence))

    def _finish(self, sequence: _Sequence, generated: int) -> None:
        del self._running[sequence]
        self._kv_used -= sequence.request.prompt_tokens + generated
        sequence.request.finished = self._time
        sequence.request.outcome = Outcome.ANSWERED
        self.num_finished += 1

    def _observe(self, seconds: float) -> None:
        self.ttft_counts[bisect_left(TTFT_BOUNDS, seconds)] += 1
        self.ttft_sum += seconds
