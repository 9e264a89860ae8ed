"""Which tokens of which sequences run in the next step.

There is no prefill phase and no decode phase. Each step has one budget of tokens; the running
sequences are served first, by rank, then waiting ones are admitted while budget, seats and blocks
last, in the order of the line (`waiting_line.py`). A sequence gets as many of its uncomputed tokens
as the budget allows: one when it decodes, a chunk when its prompt is long. So decodes never wait
for a prompt, only beside one, and how long they wait there is bounded in time (`step_time.py`), but
for prompts that were there before any of them decoded: a burst runs in whole chunks.

A sequence's rank is its priority and, within it, its place among all that were ever begun. When the
blocks run out, the running sequence of the last rank gives all of its own back and waits to be
computed anew, before all of its priority that were not begun; it keeps its rank. The one of the
first rank is never preempted, so it ends; then the next is first: nobody starves, unless by
requests of a better priority that never end. Who waits takes nothing from those that run, whatever
its priority.

Pure: no torch, no clock, no randomness; the time is an argument.
"""

from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from quire_engine.batch import Batch, Chunk, Progression
from quire_engine.block_manager import BlockManager
from quire_engine.errors import RequestRefused
from quire_engine.messages import RequestId
from quire_engine.sequence import Sequence
from quire_engine.step_time import PrefillAllowance, StepTime
from quire_engine.waiting_line import WaitingLine


@dataclass(slots=True)
class Counters:
    """Totals since start, as CoreStats names them."""

    num_preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


@dataclass(slots=True)
class _Budget:
    """What is left of a step: tokens in all, those of them that prompts may take, and time for
    prompts, which counts for those only that arrived after the first `num_unheld` requests."""

    tokens: int
    prompt_tokens: int
    prefill: PrefillAllowance
    num_unheld: int

    def limit(self, sequence: Sequence) -> int:
        """Tokens that `sequence` may take."""
        if sequence.is_decoding:
            return self.tokens
        if sequence.arrival <= self.num_unheld:
            return self.prompt_tokens
        return self.prefill.tokens(sequence.num_computed_tokens, self.prompt_tokens)

    def may_begin(self, sequence: Sequence) -> bool:
        """Whether `sequence`, which waits, may take anything."""
        is_held = sequence.arrival > self.num_unheld
        return self.prompt_tokens > 0 and not (is_held and self.prefill.is_spent)

    def take(self, sequence: Sequence, num_tokens: int) -> None:
        """Count `num_tokens` of `sequence`."""
        self.tokens -= num_tokens
        if not sequence.is_decoding:
            self.prompt_tokens -= num_tokens
            self.prefill.take(num_tokens, sequence.num_computed_tokens)
        # Decodes that come back from a preemption, all but one token cached, had nothing kept.
        self.prompt_tokens = min(self.prompt_tokens, self.tokens)


class Scheduler:
    """Owns all live sequences: the running ones by rank, the waiting ones in their line."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        token_budget: int,
        max_model_len: int,
        step_time: StepTime | None = None,
    ) -> None:
        """Without `step_time` prompts take all that decodes leave of the token budget."""
        self.blocks = blocks
        self.running: list[Sequence] = []
        self.waiting = WaitingLine()
        self.counters = Counters()
        self._max_num_seqs = max_num_seqs
        self._token_budget = token_budget
        self._max_model_len = max_model_len
        self._step_time = step_time or StepTime()
        self._num_arrived = 0
        self._num_admitted = 0

    def add(self, sequence: Sequence) -> None:
        """Queue `sequence`. RequestRefused when it could never run to its end."""
        prompt_len, limit = sequence.num_prompt_tokens, self._max_model_len
        if not 0 < prompt_len < limit:
            raise RequestRefused(
                f"a prompt must have 1 to {limit - 1} tokens (max_model_len {limit}, less one for "
                f"the answer), got {prompt_len}; shorten it"
            )
        need = self.blocks.num_blocks_for(min(prompt_len + sequence.sampling.max_tokens, limit))
        if need > self.blocks.num_blocks:
            raise RequestRefused(
                f"prompt and answer must fit the KV cache's {self.blocks.num_blocks} blocks of "
                f"{self.blocks.block_size} tokens, got {need} blocks; lower max_tokens"
            )
        self._num_arrived += 1
        sequence.arrival = self._num_arrived
        self.waiting.add(sequence)

    def schedule(self, now: float) -> Batch:
        """The next step's batch at time `now`; empty only when nothing is waiting or running."""
        chunks: list[Chunk] = []
        queue_seconds: list[float] = []
        budget, num_preemptions = self._budget(), self.counters.num_preemptions
        index = 0
        while budget.tokens and index < len(self.running):
            chunk = self._next_chunk(self.running[index], budget)
            if chunk is not None:
                chunks.append(chunk)
            index += 1
        while self.waiting and self.counters.num_preemptions == num_preemptions:
            sequence = self.waiting.first()
            is_new = not sequence.admission
            if not budget.may_begin(sequence) or len(self.running) == self._max_num_seqs:
                break
            if not self._admit(sequence):
                break
            if is_new:
                queue_seconds.append(now - sequence.arrival_time)
            chunk = self._next_chunk(sequence, budget)
            if chunk is None:  # reading what it found cached takes longer than this step has left
                break
            chunks.append(chunk)
        if any(chunk.sequence.adapter for chunk in chunks):
            # Side by side, so that an adapter's products are one call each.
            chunks.sort(key=lambda chunk: chunk.sequence.adapter)
        return Batch(tuple(chunks), tuple(queue_seconds))

    def finish_step(
        self, batch: Batch, token_ids: Items[int | None], seconds: float = 0.0
    ) -> list[Progression]:
        """Take in a token for each sequence that sampled, in order; None fails the sequence.

        `seconds` that the step took teach how long a chunk may be; 0: not known.
        """
        self._step_time.observe(batch, seconds)
        for chunk in batch.chunks:
            num_before = chunk.sequence.num_computed_tokens
            chunk.sequence.num_computed_tokens += chunk.num_tokens
            self.blocks.commit(chunk.sequence, num_before)
        return [
            self._extend(sequence, token_id)
            for sequence, token_id in zip(batch.sampling, token_ids, strict=True)
        ]

    def abort(self, request_ids: Iterable[RequestId]) -> None:
        """Drop these sequences and free their blocks. Unknown ids are ignored."""
        doomed = set(request_ids)
        for sequence in [s for s in (*self.running, *self.waiting) if s.request_id in doomed]:
            self._drop(sequence)

    def check_integrity(self) -> None:
        """Raise CoreDied unless each block is held by live sequences or by nobody."""
        self.blocks.check_integrity((*self.running, *self.waiting))

    def _budget(self) -> _Budget:
        decodes = [sequence for sequence in self.running if sequence.is_decoding]
        for sequence in decodes:
            sequence.first_decode = sequence.first_decode or self._num_arrived
        num_free_seats = self._max_num_seqs - len(self.running)
        return _Budget(
            self._token_budget,
            self._token_budget - len(decodes),
            self._step_time.allowance(
                [sequence.num_computed_tokens for sequence in decodes],
                len(self.running) - len(decodes) + min(len(self.waiting), num_free_seats),
            ),
            min((sequence.first_decode for sequence in decodes), default=self._num_arrived),
        )

    def _next_chunk(self, sequence: Sequence, budget: _Budget) -> Chunk | None:
        """Room for `sequence`'s next tokens, taken from later ranks if need be. None where it may
        take none now, or was of the last rank itself and gave its blocks back.
        """
        missing = sequence.num_tokens - sequence.num_computed_tokens
        num_tokens = min(missing, budget.limit(sequence))
        if not num_tokens:
            return None
        while not self.blocks.allocate(sequence, sequence.num_computed_tokens + num_tokens):
            if self._preempt_last() is sequence:
                return None
        budget.take(sequence, num_tokens)
        return Chunk(sequence, num_tokens, samples=num_tokens == missing)

    def _preempt_last(self) -> Sequence:
        sequence = self.running.pop()
        self.blocks.free(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        self.counters.num_preemptions += 1
        self.waiting.put_back(sequence)
        return sequence

    def _admit(self, sequence: Sequence) -> bool:
        """Move `sequence`, the first in line, to the running ones if all its tokens have room."""
        prefix = self.blocks.find_prefix(sequence)
        if not self.blocks.can_admit(sequence, prefix):
            return False
        self.blocks.take_prefix(sequence, prefix)
        sequence.num_computed_tokens = len(prefix) * self.blocks.block_size
        self.waiting.begin(sequence, sequence.num_tokens - sequence.num_computed_tokens)
        if not sequence.admission:  # what a preempted one finds again is no hit of the cache's
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self._num_admitted += 1
            sequence.admission = self._num_admitted
            self.counters.prompt_tokens += sequence.num_prompt_tokens
            self.counters.prefix_cache_queries += sequence.num_prompt_tokens
            self.counters.prefix_cache_hits += sequence.num_cached_tokens
        insort(self.running, sequence, key=lambda running: running.rank)
        return True

    def _extend(self, sequence: Sequence, token_id: int | None) -> Progression:
        if token_id is None:
            self._drop(sequence)
            return Progression(sequence, None, "error")
        sequence.token_ids.append(token_id)
        self.counters.generation_tokens += 1
        self.waiting.shares.charge(sequence.user, 1)
        reason = sequence.finish_reason(self._max_model_len)
        if reason is not None:
            self._drop(sequence)
        return Progression(sequence, token_id, reason)

    def _drop(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.drop(sequence)
        self.blocks.free(sequence)
