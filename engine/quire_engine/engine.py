"""The engine in one process: add requests, step, collect outputs. `core.py` wraps it in sockets."""

import logging
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Protocol

from torch import Tensor

from quire_engine.batch import Batch, Progression
from quire_engine.errors import RequestRefused
from quire_engine.messages import AddRequest, CoreStats, Output, RequestId, StepOutputs
from quire_engine.sampler import SampledToken, sample
from quire_engine.scheduler import Scheduler
from quire_engine.sequence import Sequence

logger = logging.getLogger(__name__)


class Model(Protocol):
    """What runs a batch; ModelRunner, or a fake in tests."""

    vocab_size: int

    def run(self, batch: Batch) -> Tensor:
        """Logits [R, vocab] float32: a row for each chunk that samples, in order."""


class Engine:
    """Requests in, tokens out, one step at a time."""

    def __init__(
        self,
        scheduler: Scheduler,
        model: Model,
        clock: Callable[[], float],
        seed: int = 0,
        adapter_hashes: Mapping[str, bytes] | None = None,
    ) -> None:
        """`adapter_hashes`: of the content of each LoRA adapter that `model` has, by name."""
        self.scheduler = scheduler
        self._model = model
        self._clock = clock
        self._seed = seed
        self._adapter_hashes = {"": b"", **(adapter_hashes or {})}
        self._num_requests = 0
        self._refused: list[Output] = []

    @property
    def num_pending(self) -> int:
        """Requests that are owed an output."""
        return len(self.scheduler.running) + len(self.scheduler.waiting) + len(self._refused)

    def step(self) -> StepOutputs:
        """Schedule, run, sample, report."""
        began = self._clock()
        batch = self.scheduler.schedule(began)
        if not batch.chunks:
            return self._report(batch, [], [])
        logits = self._model.run(batch)
        sampled = sample(logits, batch.sampling)
        token_ids = [token.token_id for token in sampled]
        progressions = self.scheduler.finish_step(batch, token_ids, self._clock() - began)
        return self._report(batch, progressions, sampled)

    def add_request(self, request: AddRequest) -> None:
        """Queue `request`; one that can never run is answered with an error by the next step."""
        self._num_requests += 1
        own_seed = blake2b(f"{self._seed}:{self._num_requests}".encode(), digest_size=8).digest()
        try:
            self._check_ids(request)
            adapter_hash = self._adapter_hash(request.adapter)
            seed = int.from_bytes(own_seed, "little")
            self.scheduler.add(Sequence.of(request, self._clock(), seed, adapter_hash))
        except RequestRefused as error:
            self._refuse(request.request_id, str(error))

    def abort(self, request_ids: Iterable[RequestId]) -> None:
        """Drop these requests: no further output, and their blocks are free. Unknown ids pass."""
        doomed = set(request_ids)
        self._refused = [output for output in self._refused if output.request_id not in doomed]
        self.scheduler.abort(doomed)

    def reset_prefix_cache(self) -> None:
        """Requests that are added from now on find no block that is full by now."""
        self.scheduler.blocks.reset_prefix_cache()

    def idle_report(self) -> StepOutputs:
        """The state without a step; raises CoreDied when blocks have leaked."""
        self.scheduler.check_integrity()
        return self._report(Batch(()), [], [])

    def _refuse(self, request_id: RequestId, error: str) -> None:
        logger.info("[%s] refused: %s", request_id, error)
        self._refused.append(
            Output(request_id=request_id, token_ids=(), finish_reason="error", error=error)
        )

    def _check_ids(self, request: AddRequest) -> None:
        """Ids beyond the vocabulary would read beyond the embedding."""
        size = self._model.vocab_size
        for name, ids in (("prompt", request.prompt_token_ids),
                          ("stop", request.sampling.stop_token_ids)):  # fmt: skip
            if ids and not 0 <= min(ids) <= max(ids) < size:
                raise RequestRefused(
                    f"{name} token ids must be >= 0 and < {size} (the vocabulary), got "
                    f"{min(ids)} to {max(ids)}; tokenize with this model's own tokenizer"
                )

    def _adapter_hash(self, adapter: str) -> bytes:
        found = self._adapter_hashes.get(adapter)
        if found is None:
            served = ", ".join(sorted(self._adapter_hashes)[1:]) or "none"
            raise RequestRefused(
                f"adapter must be one that is loaded ({served}), got {adapter!r}; start the engine "
                "with it"
            )
        return found

    def _report(
        self, batch: Batch, progressions: list[Progression], sampled: list[SampledToken]
    ) -> StepOutputs:
        outputs = [*self._refused]
        self._refused = []
        for progression, token in zip(progressions, sampled, strict=True):
            outputs.append(_output(progression, token))
        return StepOutputs(outputs=tuple(outputs), stats=self._stats(batch))

    def _stats(self, batch: Batch) -> CoreStats:
        scheduler, counters = self.scheduler, self.scheduler.counters
        blocks = scheduler.blocks
        return CoreStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_cache_usage=blocks.num_used_blocks / blocks.num_blocks,
            num_preemptions=counters.num_preemptions,
            prefix_cache_queries=counters.prefix_cache_queries,
            prefix_cache_hits=counters.prefix_cache_hits,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            step_tokens=batch.num_tokens,
            queue_seconds=batch.queue_seconds,
            num_free_blocks=blocks.num_free_blocks,
            num_blocks=blocks.num_blocks,
            running_adapters=self._adapters_of(scheduler.running),
            waiting_adapters=self._adapters_of(scheduler.waiting),
        )

    def _adapters_of(self, sequences: Iterable[Sequence]) -> tuple[str, ...]:
        if len(self._adapter_hashes) == 1:
            return ()
        return tuple(sorted({sequence.adapter for sequence in sequences} - {""}))


def _output(progression: Progression, token: SampledToken) -> Output:
    sequence, reason = progression.sequence, progression.finish_reason
    return Output(
        request_id=sequence.request_id,
        token_ids=() if token.token_id is None else (token.token_id,),
        finish_reason=reason,
        stop_token_id=token.token_id if reason == "stop" else None,
        num_cached_tokens=sequence.num_cached_tokens,
        logprobs=() if token.logprobs is None else (token.logprobs,),
        error=token.error,
    )
