"""What the API process knows of the core: who is in there, what comes out, and what to do when it
dies.

`CoreClient` owns every open sequence. A handler `submit`s its sequences and gets a `Generation`;
leaving its `with` block aborts whatever is not finished, so no path out of a handler can leave
blocks behind.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import zmq

from quire_engine.api.core_process import CoreProcess, describe_exit
from quire_engine.api.errors import ApiError, ClientGone, InvalidRequest, QueueFull, Unavailable
from quire_engine.api.metrics import Metrics
from quire_engine.errors import ExitCode
from quire_engine.messages import (
    AbortRequests,
    AddRequest,
    CoreFailed,
    CoreReady,
    CoreStats,
    FromCore,
    Output,
    RequestId,
    ResetPrefixCache,
    Shutdown,
    StepOutputs,
    ToCore,
)

logger = logging.getLogger(__name__)

DEFAULT_QUEUED_STEPS = 256  # full steps of prompts that may wait, where nobody says how many tokens
LAST_WORDS_SECONDS = 0.2  # a CoreFailed may still be on its way when the process is already gone

OUTPUTS_A_TURN = 64
"""Outputs of a step that are handed out before the event loop looks at anything else. Each wakes a
handler, which detokenizes and writes: a step of 1,000 streams would be one block.
"""

_NOTHING_YET = CoreStats(
    num_running=0,
    num_waiting=0,
    kv_cache_usage=0.0,
    num_preemptions=0,
    prefix_cache_queries=0,
    prefix_cache_hits=0,
    prompt_tokens=0,
    generation_tokens=0,
    step_tokens=0,
)


@dataclass(slots=True)
class _Sequence:
    """One open sequence. Times are monotonic seconds."""

    generation: "Generation"
    arrived: float
    num_prompt_tokens: int
    last_token: float | None = None


class Generation:
    """The sequences of one HTTP request, in the core."""

    def __init__(self, client: "CoreClient", request_ids: Iterable[RequestId]) -> None:
        self._client = client
        self._open = set(request_ids)
        self._outputs: list[Output] = []
        self._failure: Exception | None = None
        self._news: asyncio.Future[None] | None = None  # what `next` waits for

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *_: object) -> None:
        self.abort(self._open)
        self._failure = None  # raised, it holds the frames that hold this: a cycle

    @property
    def is_open(self) -> bool:
        """Whether anything may still come."""
        return bool(self._open or self._outputs)

    async def next(self) -> list[Output]:
        """What has come since the last call, at least one output. Raises why no more will come.
        One caller at a time.
        """
        if not self._outputs and self._failure is None:
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        if self._failure is not None:
            raise self._failure
        outputs, self._outputs = self._outputs, []
        return outputs

    def finish(self, request_id: RequestId) -> None:
        """A stop string ended this sequence: the core need not go on with it."""
        if request_id in self._open:
            self._open.discard(request_id)
            self._client.drop([request_id], reason="stop")

    def abort(self, request_ids: Iterable[RequestId]) -> None:
        """Nobody wants these any more."""
        gone = [request_id for request_id in request_ids if request_id in self._open]
        self._open.difference_update(gone)
        self._client.drop(gone, reason="abort")

    def leave(self) -> None:
        """The client closed its connection: abort now, whatever the handler is waiting for."""
        if self._open:
            self.abort(self._open)
            self.fail(ClientGone())

    def deliver(self, output: Output) -> None:
        """Called by the client with this generation's outputs."""
        if output.finish_reason is not None:
            self._open.discard(output.request_id)
        self._outputs.append(output)
        self._wake()

    def fail(self, error: Exception) -> None:
        """No more will come; `next` raises `error`."""
        self._open.clear()
        self._failure = error
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


@dataclass(frozen=True)
class CoreEnd:
    """How the core ended, for our own end."""

    exit_code: int
    reason: str
    message: str


class CoreClient:
    """The core process, seen from the event loop. One at a time; not thread safe."""

    def __init__(
        self,
        core: CoreProcess,
        metrics: Metrics,
        *,
        max_num_queued_reqs: int,
        max_num_queued_tokens: int | None = None,
    ) -> None:
        self._core = core
        self._metrics = metrics
        self._max_num_queued_reqs = max_num_queued_reqs
        self._max_num_queued_tokens = max_num_queued_tokens
        self._sequences: dict[RequestId, _Sequence] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromCore)
        self._failed: CoreFailed | None = None
        self._closed_with: ApiError | None = None
        self._became_ready = asyncio.Event()
        self._undelivered: deque[Output] = deque()  # the rest of the last step
        self._next_turn: asyncio.Handle | None = None
        self.stats = _NOTHING_YET
        self.ready: CoreReady | None = None
        self.num_queued_tokens = 0
        """Of the prompts whose first token is still to come, wherever they are."""
        self.pending_since: float | None = None
        """When the first of the sequences now open came, monotonic; None while there is none."""

    # ---- what stands where ----------------------------------------------------------------------

    @property
    def num_open(self) -> int:
        """Sequences that are not finished, wherever they are."""
        return len(self._sequences)

    @property
    def num_running(self) -> int:
        """Sequences that the core ran in its last step."""
        return min(self.stats.num_running, self.num_open)

    @property
    def num_waiting(self) -> int:
        """Sequences that do not run: in the core's queue, preempted, or on their way there."""
        return self.num_open - self.num_running

    @property
    def num_queued(self) -> int:
        """Sequences that will still wait after the core's next step: those on their way take free
        seats.
        """
        assert self.ready is not None
        on_their_way = max(0, self.num_waiting - self.stats.num_waiting)
        seats = 0 if self.stats.num_waiting else self.ready.max_num_seqs - self.num_running
        return self.stats.num_waiting + max(0, on_their_way - seats)

    # ---- what handlers do -----------------------------------------------------------------------

    def require_room(self, num_sequences: int) -> None:
        """QueueFull when so many sequences cannot be taken now, InvalidRequest when they never
        can. Cheap: ask before tokenizing, which a body of a million prompts pays for otherwise.
        """
        if self.ready is None:
            raise Unavailable("the model is not loaded yet; try again shortly", retry_after=2)
        seats, most = self.ready.max_num_seqs, self._max_num_queued_reqs
        if num_sequences > seats + most:
            raise InvalidRequest(
                f"prompts x n must be <= {seats + most} (what runs and waits at once), "
                f"got {num_sequences}; split the request",
                param="n",
            )
        free = 0 if self.num_queued else max(0, seats - self.num_open)
        if self.num_queued + max(0, num_sequences - free) > most:
            raise QueueFull(
                f"at most {most} sequences may wait beside the {seats} that run, {self.num_queued} "
                f"wait and this request brings {num_sequences}; "
                f"try again in {self._seconds_to_a_seat()} s",
                retry_after=self._seconds_to_a_seat(),
            )

    def require_room_for_tokens(self, num_tokens: int) -> None:
        """QueueFull when prompts of so many tokens in all cannot be taken now. Where no prompt
        waits, any can.
        """
        assert self.ready is not None
        most = self._max_num_queued_tokens
        if most is None:
            most = DEFAULT_QUEUED_STEPS * self.ready.max_num_batched_tokens
        if self.num_queued_tokens and self.num_queued_tokens + num_tokens > most:
            seconds = _whole_seconds(self._metrics.mean_ttft_seconds)
            raise QueueFull(
                f"at most {most} prompt tokens may wait for their answers' first tokens, "
                f"{self.num_queued_tokens} wait and this request brings {num_tokens}; "
                f"try again in {seconds} s",
                retry_after=seconds,
            )

    def submit(self, requests: Sequence[AddRequest], *, arrived: float) -> Generation:
        """Send the sequences of one HTTP request. QueueFull or Unavailable when they cannot be
        taken; after `fail_all`, its error.
        """
        if self._closed_with is not None:
            raise self._closed_with
        self.require_room(len(requests))
        self.require_room_for_tokens(sum(len(request.prompt_token_ids) for request in requests))
        generation = Generation(self, [request.request_id for request in requests])
        if not self._sequences:
            self.pending_since = time.monotonic()
        for request in requests:
            num_tokens = len(request.prompt_token_ids)
            self._sequences[request.request_id] = _Sequence(generation, arrived, num_tokens)
            self.num_queued_tokens += num_tokens
            self._send(request)
        return generation

    def drop(self, request_ids: Sequence[RequestId], *, reason: str) -> None:
        """Tell the core to drop these; count them as ended for `reason`."""
        known = [request_id for request_id in request_ids if request_id in self._sequences]
        if not known:
            return
        for request_id in known:
            self._forget(request_id, reason)
        self._send(AbortRequests(request_ids=tuple(known)))

    def reset_prefix_cache(self) -> None:
        """What is submitted after this finds no prefix from before: messages keep their order."""
        self._send(ResetPrefixCache())

    def fail_all(self, error: ApiError) -> int:
        """End every open sequence with `error`, and whatever is submitted from now on: requests
        that were accepted may be on their way here. How many were open.
        """
        self._closed_with = error
        count = self.num_open
        generations = {id(entry.generation): entry.generation for entry in self._sequences.values()}
        self.drop(list(self._sequences), reason="abort")
        for generation in generations.values():
            generation.fail(error)
        return count

    # ---- the core's life ------------------------------------------------------------------------

    def listen(self) -> None:
        """Take the core's frames from now on. ZeroMQ's descriptor is edge-triggered: drained each
        time.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._core.outputs.fileno(), self._receive)
        loop.call_soon(self._receive)

    async def until_ready(self) -> CoreReady:
        """The core's report, once it has loaded the model and can be sent requests."""
        await self._became_ready.wait()
        assert self.ready is not None
        return self.ready

    async def until_ended(self) -> CoreEnd:
        """How the core ended. Every open sequence has failed by then."""
        code = await self._core.wait()
        await self._until_received()
        if self._failed is None:
            await asyncio.sleep(LAST_WORDS_SECONDS)
            await self._until_received()
        if self._failed is not None:
            return CoreEnd(self._failed.exit_code, self._failed.reason, self._failed.message)
        exit_code = code if code in list(ExitCode) and code != 0 else ExitCode.INTERNAL
        return CoreEnd(
            exit_code,
            "CoreDied",
            f"the core process must live as long as the server, it ended by {describe_exit(code)}; "
            "see its log above",
        )

    async def shutdown(self) -> None:
        """Tell the core to leave, and see it leave."""
        asyncio.get_running_loop().remove_reader(self._core.outputs.fileno())
        if self._next_turn is not None:
            self._next_turn.cancel()
        if self.ready is not None and self._core.process.poll() is None:
            self._send(Shutdown())
            await self._core.stop()
        else:
            self._core.close()  # it is gone, or loading and reads no messages yet

    # ---- inside ---------------------------------------------------------------------------------

    def _seconds_to_a_seat(self) -> int:
        """A seat frees every (mean time of a request / seats) seconds; the queue comes first."""
        assert self.ready is not None
        seconds = self.num_queued * self._metrics.mean_e2e_seconds / self.ready.max_num_seqs
        return _whole_seconds(seconds)

    def _send(self, message: ToCore) -> None:
        try:
            self._core.requests.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:  # no peer: the core is gone, and `until_ended` is about to say so
            logger.warning("core takes no messages message=%s", type(message).__name__)

    def _receive(self) -> None:
        """There are frames, or there may be."""
        if self._next_turn is None:
            self._turn()

    async def _until_received(self) -> None:
        self._receive()
        while self._next_turn is not None:
            await asyncio.sleep(0)

    def _turn(self) -> None:
        """One frame, or more outputs of the last; then everybody else's turn. Frames wait where
        they are until the one before is handed out: as bytes they cost least.
        """
        is_more = True
        try:
            if self._undelivered:
                self._deliver()
            else:
                is_more = self._take_frame()
        finally:  # a bug in one delivery must not keep all others waiting for ever
            loop = asyncio.get_running_loop()
            self._next_turn = loop.call_soon(self._turn) if is_more else None

    def _take_frame(self) -> bool:
        """Whether there was one."""
        try:
            frame = self._core.outputs.recv(zmq.NOBLOCK)
        except zmq.Again:
            return False
        try:
            self._handle(self._decoder.decode(frame))
        except msgspec.MsgspecError as error:
            self._give_up(error)
        return True

    def _give_up(self, error: msgspec.MsgspecError) -> None:
        """A core that speaks another language would leave every request without an answer."""
        self._failed = CoreFailed(
            exit_code=ExitCode.INTERNAL,
            reason="CoreDied",
            message=f"the core must send messages.py's frames, got one that says: {error}; "
            "run API and core from one installation",
        )
        self._core.process.kill()

    def _handle(self, message: FromCore) -> None:
        match message:
            case StepOutputs():
                self._take_step(message)
            case CoreReady():
                self.ready = message
                self.stats = msgspec.structs.replace(
                    self.stats, num_free_blocks=message.num_blocks, num_blocks=message.num_blocks
                )  # else a scrape before the first step would tell of a cache without a free block
                self._core.remove_folder()
                self._became_ready.set()
            case CoreFailed():
                self._failed = message

    def _take_step(self, step: StepOutputs) -> None:
        self.stats = step.stats
        self._metrics.observe_step(step.stats)
        self._undelivered.extend(step.outputs)
        self._deliver()

    def _deliver(self) -> None:
        """Hand out a turn's outputs."""
        now = time.monotonic()
        for _ in range(min(OUTPUTS_A_TURN, len(self._undelivered))):
            self._deliver_one(self._undelivered.popleft(), now)

    def _deliver_one(self, output: Output, now: float) -> None:
        entry = self._sequences.get(output.request_id)
        if entry is None:
            return  # aborted by us while the core was at it
        if output.token_ids:
            self._metrics.observe_tokens(
                len(output.token_ids), now, entry.arrived, entry.last_token
            )
            if entry.last_token is None:
                self.num_queued_tokens -= entry.num_prompt_tokens
            entry.last_token = now
        if output.finish_reason is not None:
            self._forget(output.request_id, output.finish_reason)
        entry.generation.deliver(output)

    def _forget(self, request_id: RequestId, reason: str) -> None:
        entry = self._sequences.pop(request_id)
        if entry.last_token is None:
            self.num_queued_tokens -= entry.num_prompt_tokens
        if not self._sequences:
            self.pending_since = None
        self._metrics.observe_end(reason, time.monotonic() - entry.arrived)


def _whole_seconds(seconds: float) -> int:
    """As Retry-After carries them: a second to a minute."""
    return max(1, min(60, math.ceil(seconds)))
